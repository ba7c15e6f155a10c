"""Products and gradients with quantised weights equal those with the dense matrix they hold."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from quantized_matrices import (
    PLAIN,
    STORAGES,
    assert_same_bits,
    by_storage,
    dense_like,
    dense_of,
    make,
    network,
    random_matrix,
)

from lora_jax.quantization.quantize import NF4, Int8, quantized


@pytest.mark.parametrize(
    "storage, shape, dtype",
    [
        (NF4(), (63, 70), jnp.float64),
        (NF4(double_quant=True), (130, 6), jnp.bfloat16),
        (Int8(), (130, 6), jnp.bfloat16),
        (Int8(), (63, 70), jnp.float64),
    ],
)
def test_products_and_gradients_are_those_of_the_dense_matrix(storage, shape, dtype, x64):
    matrix = random_matrix(shape, dtype=dtype) / np.asarray(8, dtype)
    x = random_matrix((2, 3, shape[0]), 1, dtype)

    @jax.jit
    def both(matrix, x):
        base = quantized(storage, matrix)
        assert (base.shape, base.dtype, base.dense().dtype) == (shape, dtype, dtype)
        y, pull = jax.vjp(functools.partial(network, base), x)
        expected, pull_expected = jax.vjp(functools.partial(network, dense_like(base)), x)
        return (y, *pull(y)), (expected, *pull_expected(expected))

    for mine, theirs in zip(*both(matrix, x), strict=True):
        assert mine.dtype == theirs.dtype == dtype
        np.testing.assert_allclose(
            np.float64(mine), np.float64(theirs), rtol=8 * jnp.finfo(dtype).eps, atol=1e-12
        )


@by_storage
def test_forward_over_reverse(storage, x64):
    matrix = random_matrix((70, 6), dtype=np.float64) / 8
    x, tangent = (random_matrix((4, 70), seed, np.float64) for seed in (1, 2))

    def curvature(base):
        gradient = jax.grad(lambda x: jnp.sum(network(base, x) ** 2))
        return jax.jvp(gradient, (x,), (tangent,))

    @jax.jit
    def both(matrix):
        base = quantized(storage, matrix)
        return curvature(base), curvature(dense_like(base))

    for mine, theirs in zip(*both(matrix), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-14)


def test_no_gradient_reaches_what_is_stored():
    for storage in STORAGES:
        base = make(storage, random_matrix(PLAIN))

        def use(base):
            rows, x = np.arange(3), jnp.ones((2, 64))
            return sum(jnp.sum(y**2) for y in (base.dot(x), base.dense(), base.take(rows)))

        gradient = jax.jit(jax.grad(use, allow_int=True))(base)
        for name, leaf in gradient.value.items():
            stored = base.value[name].dtype
            assert leaf.dtype == (stored if stored == jnp.float32 else jax.dtypes.float0)
            assert leaf.dtype == jax.dtypes.float0 or not leaf.any()


@by_storage
def test_stacks_and_transformations(storage, x64):
    """vmap over stored matrices and over x, scan, remat, jit: all equal to a Python loop."""
    count, size = 2, 66
    matrices = random_matrix((count, size, size), dtype=np.float64) / 16
    xs = random_matrix((count, 4, size), 1, np.float64)

    def each(stacked):
        return [jax.tree.map(lambda leaf: leaf[index], stacked) for index in range(count)]  # noqa: B023

    def layered(stacked, x):
        for base in each(stacked):
            x = network(dense_like(base), x)
        return x

    def scanned(stacked, x):
        return lax.scan(jax.checkpoint(lambda x, b: (network(b, x), None)), x, stacked)[0]

    def gradients(layers, stacked, xs):
        return jax.vmap(jax.grad(lambda x: jnp.sum(layers(stacked, x) ** 2)))(xs)

    @jax.jit
    def pairs(matrices, xs):
        stacked = jax.vmap(functools.partial(quantized, storage))(matrices)
        bases = each(stacked)
        alone = [quantized(storage, matrix).value for matrix in matrices]
        one_by_one = [dense_like(base).dot(x) for base, x in zip(bases, xs, strict=True)]
        return {
            "matrices": (jax.vmap(lambda base, x: base.dot(x))(stacked, xs), jnp.stack(one_by_one)),
            "inputs": (jax.vmap(bases[0].dot_t)(xs), jax.vmap(dense_like(bases[0]).dot_t)(xs)),
            "scan": (scanned(stacked, xs[0]), layered(stacked, xs[0])),
            "gradients": (gradients(scanned, stacked, xs), gradients(layered, stacked, xs)),
        }, ([base.value for base in bases], alone)

    products, (stored, alone) = pairs(matrices, xs)
    for mine, theirs in products.values():
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-14)
    for one, other in zip(stored, alone, strict=True):  # a stack is stored as its matrices are
        for name, array in one.items():
            np.testing.assert_allclose(array, other[name], rtol=1e-6)


def test_casts_follow_one_another():
    base = make(NF4(), random_matrix(PLAIN))
    narrowed = base.astype(jnp.bfloat16).astype(jnp.float32)
    assert narrowed.dtype == jnp.float32 and narrowed.dtypes[1:] == (jnp.bfloat16, jnp.float32)
    dense, taken = jax.jit(lambda base: (base.dense(), base.take(np.arange(4))))(narrowed)
    whole = np.asarray(dense_of(base))
    expected = whole.astype(jnp.bfloat16).astype(np.float32)
    assert_same_bits(dense, expected)
    assert_same_bits(taken, expected[:4])
    assert (expected != whole).any()


@pytest.mark.parametrize("accumulate", [None, jnp.float32])
def test_products_accumulate_as_those_of_a_dense_base(accumulate):
    base = make(Int8(), random_matrix((64, 32), dtype=jnp.bfloat16))
    base = dataclasses.replace(base, accumulate=accumulate)

    @jax.jit
    def both(base, x):
        y, pull = jax.vjp(base.dot, x)
        expected, pull_expected = jax.vjp(dense_like(base).dot, x)
        return (y, pull(y)[0]), (expected, pull_expected(y)[0])

    mine, theirs = both(base, random_matrix((8, 64), 1, jnp.bfloat16))
    assert mine[0].dtype == (accumulate or jnp.bfloat16)
    for one, other in zip(mine, theirs, strict=True):
        assert_same_bits(one, other)


def test_the_backward_pass_has_the_precision_of_the_product():
    base = make(NF4(), random_matrix(PLAIN))

    def loss(x):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(base.dot(x))

    text = str(jax.make_jaxpr(jax.grad(loss))(np.ones((2, 64), np.float32)))
    assert text.count("dot_general") == 2
    assert len(re.findall(r"precision=\(Precision.HIGHEST, Precision.HIGHEST\)", text)) == 2
