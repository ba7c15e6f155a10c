"""Small matrices, the ways to store them that tests try, and what is read back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.quantization.quantize import NF4, Int8, quantized
from lora_jax.variant import Base

STORAGES = [NF4(), NF4(double_quant=True), Int8()]
by_storage = pytest.mark.parametrize("storage", STORAGES[1:], ids=["double", "int8"])
"""Double quantisation does all that NF4 does, and nests its scales."""
PLAIN = (64, 10)  # the shape where no other matters, so that less is compiled


def assert_same_bits(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(actual, expected)


make = jax.jit(quantized, static_argnums=0)
dense_of = jax.jit(lambda base: base.dense())


@functools.partial(jax.jit, static_argnums=0)
def stored_and_loaded(storage, matrix):
    stored = storage.store(matrix)
    return stored, storage.load(stored, matrix.shape, jnp.float32)


def random_matrix(shape, seed=0, dtype=np.float32):
    return np.random.RandomState(seed).standard_t(4, shape).astype(dtype)


def dense_like(base):
    return Base(base.dense(), "io", base.accumulate)


def network(base, x):
    return jnp.tanh(base.dot_t(jnp.tanh(base.dot(x))))
