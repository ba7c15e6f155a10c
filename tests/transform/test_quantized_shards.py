"""Sharded quantised weights are multiplied where they lie; no device gathers a whole one."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from quantized_matrices import dense_of, make, random_matrix

from lora_jax.quantization.quantize import NF4, Int8, quantized
from lora_jax.variant import Base

WIDTH = 512

LAYOUTS = {"in": P("x", None), "out": P(None, "x")}
by_layout = pytest.mark.parametrize(
    "storage, layout", [(NF4(), "out"), (NF4(double_quant=True), "in"), (Int8(), "out")]
)


def laid_out(base, mesh, layout):
    """The stored arrays of a matrix on devices, those of its shape divided like it."""

    def lay(name, array):
        whole = array.ndim < 2 or (array.shape[0] == 1 and layout == "in")
        return jax.device_put(array, NamedSharding(mesh, P() if whole else LAYOUTS[layout]))

    value = {name: lay(name, array) for name, array in base.value.items()}
    return dataclasses.replace(base, value=value)


def product_and_gradient(base, x):
    y, pull = jax.vjp(lambda x: jnp.tanh(base.dot(x)), x)
    return y, pull(y)[0]


def example(storage):
    """A matrix, its stored form, an input, and `product_and_gradient` of them."""
    matrix, x = (
        random_matrix((WIDTH, WIDTH)) / np.float32(WIDTH**0.5),
        random_matrix((16, WIDTH), 1),
    )
    base = make(storage, matrix)
    dense = np.asarray(dense_of(base))
    y = np.tanh(x @ dense)
    return matrix, base, x, (y, (y * (1 - y**2)) @ dense.T)


def moved_sizes(compiled):
    """How many numbers each collective operation of a program yields."""
    kinds = "all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"
    found = re.findall(rf"= \(?\w+\[([\d,]*)\].*? (?:{kinds})(?:-start)?\(", compiled.as_text())
    return [math.prod(int(n) for n in shape.split(",") if n) for shape in found]


@pytest.mark.usefixtures("full_optimization")
@by_layout
def test_nothing_of_a_weights_size_is_gathered(storage, layout):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    matrix, base, x, expected = example(storage)
    sharded = laid_out(base, mesh, layout)
    step = jax.jit(product_and_gradient).lower(sharded, x).compile()
    assert moved_sizes(step) and max(moved_sizes(step)) <= x.size  # the sum of a product
    assert step.memory_analysis().temp_size_in_bytes < WIDTH * WIDTH * 4 / 2
    for mine, theirs in zip(step(sharded, x), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)

    # Storing is as local: the scales at most are moved.
    matrix = jax.device_put(matrix, NamedSharding(mesh, LAYOUTS[layout]))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, sharded.value)
    storing = jax.jit(storage.store, out_shardings=shardings).lower(matrix).compile()
    assert max(moved_sizes(storing), default=0) <= WIDTH * WIDTH // 64


@pytest.mark.usefixtures("full_optimization")
def test_a_gathered_weight_would_be_noticed():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    _, base, x, _ = example(Int8())

    def gathered(base, x):
        whole = lax.with_sharding_constraint(base.dense(), NamedSharding(mesh, P()))
        return Base(whole, "io").dot(x)

    compiled = jax.jit(gathered).lower(laid_out(base, mesh, "out"), x).compile()
    assert max(moved_sizes(compiled)) == WIDTH * WIDTH


@by_layout
def test_explicit_shardings(storage, layout):
    """Shardings as a part of types: as of a dense matrix."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    matrix, _, x, expected = example(storage)

    @jax.jit
    def both(matrix, x):
        base = quantized(storage, matrix)
        dense = Base(jax.sharding.reshard(base.dense(), LAYOUTS[layout]), "io")
        return product_and_gradient(base, x), product_and_gradient(dense, x)

    with jax.set_mesh(mesh):
        matrix = jax.device_put(matrix, NamedSharding(mesh, LAYOUTS[layout]))
        mine, theirs = both(matrix, x)
        assert jax.tree.map(jax.typeof, mine) == jax.tree.map(jax.typeof, theirs)
    for one, other in zip(mine, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
