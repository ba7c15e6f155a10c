"""The sum of two products: the same bits as a plain sum, kept once for the backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.methods.products import add
from lora_jax.models.parts.modules import gelu

SHAPE = (64, 256)


def test_a_sum_has_the_bits_of_a_plain_one():
    x, y = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype("float32") * 1e3
    np.testing.assert_array_equal(jax.jit(add)(x, y), x + y)
    narrow = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    summed = jax.jit(add)(*narrow)
    assert summed.dtype == jnp.bfloat16
    np.testing.assert_array_equal(summed, narrow[0] + narrow[1])


@pytest.mark.usefixtures("full_optimization")
def test_the_backward_pass_keeps_the_sum_instead_of_its_terms():
    """Which XLA would else compute again, from two arrays, wherever it is read."""

    def temporaries(total):
        def loss(a, b, x):
            for _ in range(4):
                x = gelu(total(x @ a, (x @ a[:, :4]) @ b)) @ a
            return x.sum()

        a, b = jnp.zeros((SHAPE[1], SHAPE[1])), jnp.zeros((4, SHAPE[1]))
        gradient = jax.jit(jax.grad(loss, 1))
        analysis = gradient.lower(a, b, jnp.zeros(SHAPE)).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    assert temporaries(add) < 0.9 * temporaries(jnp.add)
