"""HiRA multiplies a weight entry by entry, and dropout spares the base."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weight_formula import assert_is_weight, base_of, factors_of

from variants.hira import HiRA

KEY = jax.random.key(0)


@pytest.mark.parametrize("settings", [{}, {"alpha": 3.0}, {"alpha": 8.0, "scale": "alpha/rank"}])
def test_hira_multiplies_the_weight_entry_by_entry(settings, x64):
    base, variant = base_of((9, 7)), HiRA(rank=2, **settings)
    factors = factors_of(variant, base)
    a, b = (np.asarray(factors.trainable[n]) for n in "ab")
    scale = {0: 1.0, 1: 3.0, 2: 4.0}[len(settings)]
    w = np.asarray(base.value) * (1 + scale * a.T @ b)
    assert_is_weight(variant, base, factors, jnp.asarray(w))
    assert np.linalg.matrix_rank(w - np.asarray(base.value)) == 7  # far beyond its own 2
    assert variant.count((9, 7)) == 32


def test_hira_drops_the_inputs_of_the_update(x64):
    base, variant = base_of((9, 7)), HiRA(rank=2, dropout=0.4)
    factors = factors_of(variant, base)
    w, x = np.asarray(base.value), np.random.RandomState(3).randn(4, 9)
    update = w * (np.asarray(factors.trainable["a"]).T @ np.asarray(factors.trainable["b"]))

    @jax.jit
    @jax.vmap
    def dot(key):
        kept = jax.random.bernoulli(key, jnp.asarray(0.6), x.shape)
        return variant.dot(jnp.asarray(x), base, factors, dropout_key=key), kept

    ys, kept = map(np.asarray, dot(jax.random.split(KEY, 4000)))
    np.testing.assert_allclose(ys, x @ w + np.where(kept, x, 0) / 0.6 @ update, atol=1e-12)
    error = np.abs(ys.mean(0) - x @ (w + update))
    assert (error < 4.5 * ys.std(0) / math.sqrt(len(ys))).all()  # 28 numbers
