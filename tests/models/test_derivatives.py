"""The functions of models that have their own derivatives: gelu, and the norm of a layer."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lora_jax.models.parts.modules import gelu, standardize

pytestmark = pytest.mark.usefixtures("x64")
X = np.random.default_rng(0).normal(0, 3, (4, 5, 16))


def test_gelu_is_x_times_the_normal_distribution_function():
    expected = [each * (1 + math.erf(each / math.sqrt(2))) / 2 for each in X.ravel()]
    np.testing.assert_allclose(gelu(jnp.asarray(X)).ravel(), expected, rtol=0, atol=1e-14)
    low = gelu(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(low.ravel(), expected, rtol=0, atol=2e-6)
    assert gelu(jnp.asarray(X, jnp.bfloat16)).dtype == jnp.bfloat16


def test_standardize_is_the_formula():
    expected = (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(standardize(jnp.asarray(X), 1e-3), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("function", [gelu, lambda x: standardize(x, 1e-3)])
def test_derivatives_are_those_of_finite_differences(function):
    check_grads(function, (jnp.asarray(X),), order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)


def test_gelu_keeps_no_more_than_its_input_for_the_backward_pass():
    _, pullback = jax.vjp(gelu, jnp.asarray(X))
    assert sum(each.nbytes for each in jax.tree.leaves(pullback)) == X.nbytes
