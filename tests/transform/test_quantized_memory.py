"""Layers with quantised weights keep no dense matrix for the backward pass."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from quantized_matrices import by_storage, dense_like

from lora_jax.quantization.quantize import Int8, quantized

LAYERS, WIDTH = 8, 512


def training_step(multiply, loop):
    """The gradient with respect to LoRA factors and x, of layers in a scan or one by one."""

    def loss(trained, stacked):
        def layer(x, both):
            (a, b), base = both
            return jnp.tanh(multiply(base, x) + (x @ a.T) @ b), None

        factors, x = trained
        if loop == "scan":
            x, _ = lax.scan(layer, x, (factors, stacked))
        else:
            for index in range(LAYERS):
                x, _ = layer(x, jax.tree.map(lambda leaf: leaf[index], (factors, stacked)))  # noqa: B023
        return jnp.mean(x**2)

    return jax.grad(loss)


def temporary_bytes(storage, multiply, loop):
    matrices = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32)
    stacked = jax.eval_shape(jax.vmap(functools.partial(quantized, storage)), matrices)
    factors = [jax.ShapeDtypeStruct((LAYERS, 4, WIDTH), jnp.float32)] * 2
    trained = (factors, jax.ShapeDtypeStruct((16, WIDTH), jnp.float32))
    compiled = jax.jit(training_step(multiply, loop)).lower(trained, stacked).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def requantised(base, x):
    return base.dot(x)


def differentiated(base, x):
    """What automatic differentiation keeps: the dense matrix."""
    return dense_like(base).dot(x)


DENSE_BYTES = LAYERS * WIDTH * WIDTH * 4


@pytest.mark.usefixtures("full_optimization")
@by_storage
def test_scanned_layers_keep_nothing_dense(storage):
    assert temporary_bytes(storage, requantised, "scan") < 0.3 * DENSE_BYTES
    if storage == Int8():  # and the look finds what is kept
        assert temporary_bytes(storage, differentiated, "scan") >= DENSE_BYTES


@pytest.mark.usefixtures("full_optimization")
@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="XLA:CPU drops optimization barriers")
@by_storage
def test_layers_one_by_one_keep_nothing_dense(storage):
    assert temporary_bytes(storage, requantised, "one by one") < 0.5 * DENSE_BYTES
    if storage == Int8():
        assert temporary_bytes(storage, differentiated, "one by one") >= DENSE_BYTES
