"""Stacked layers applied in turn: unrolled or scanned, with dropout keys or without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.models.parts import modules
from lora_jax.models.parts.modules import over_layers


def layer(x, each):
    weights, shift = each
    return jnp.tanh(x @ weights + shift[None]), None


def stacked(count):
    rng = np.random.default_rng(count)
    shapes = (count, 4, 4), (count, 4)
    return tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)


def loss(each, count, unroll):
    return over_layers(layer, jnp.ones((2, 4)), each, count, unroll)[0].sum()


@pytest.mark.parametrize("unroll", [None, 1, 2, 3, 5, 9])
def test_layers_apply_one_after_another(unroll):
    weights, shifts = stacked(5)
    expected = np.ones((2, 4))
    for matrix, shift in zip(weights, shifts, strict=True):
        expected = np.tanh(expected @ np.asarray(matrix, np.float64) + np.asarray(shift))
    found, _ = over_layers(layer, jnp.ones((2, 4)), (weights, shifts), 5, unroll)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    gradient = jax.grad(loss)((weights, shifts), 5, unroll)
    for mine, scanned in zip(gradient, jax.grad(loss)((weights, shifts), 5, 1), strict=True):
        np.testing.assert_allclose(mine, scanned, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "unroll", "loops"), [(48, None, 0), (49, None, 2), (3, 1, 2), (49, 49, 0)]
)
def test_what_is_unrolled_by_default_on_cpus(count, unroll, loops):
    """A loop for the forward pass, and one for the backward pass."""
    step = jax.jit(jax.grad(loss), static_argnums=(1, 2))
    text = step.lower(stacked(count), count, unroll).compile().as_text()
    assert text.count(" while(") == loops


def test_other_backends_scan(monkeypatch):
    monkeypatch.setattr(modules.jax, "default_backend", lambda: "tpu")
    (scan,) = jax.make_jaxpr(lambda each: over_layers(layer, jnp.ones((2, 4)), each, 3, None))(
        stacked(3)
    ).eqns[-1:]
    assert scan.primitive.name == "scan" and scan.params["unroll"] == 1
