"""MiSS against its formula, one shard repeated down the inputs, also where it is cut off."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lora_jax as lj
import variants
from lora_jax.variant import Base, Factors
from variants.miss import MiSS

KEY = jax.random.key(0)
CASES = [((8, 5), 4), ((8, 5), 8), ((6, 9), 1), ((7, 5), 3), ((5, 7), 4), ((13, 4), 6)]
"""Shapes and ranks; the last three ranks do not divide the inputs."""


def setup(shape, rank, **settings):
    """The variant, a random base, factors away from their start, and an input."""
    random = np.random.RandomState(rank)
    variant = MiSS(rank=rank, **settings)
    base = Base(jnp.asarray(random.randn(*shape)), "io")
    d = jnp.asarray(random.randn(rank, shape[1]))
    factors = Factors({"d": d}, variant.init(KEY, base).constants)
    return variant, base, factors, random.randn(2, 3, shape[0])


def fold(x, rank):
    """The sums over every `rank`-th input."""
    return np.stack([x[..., k::rank].sum(-1) for k in range(rank)], axis=-1)


@pytest.mark.parametrize("shape, rank", CASES)
def test_one_shard_is_repeated_down_the_inputs(shape, rank, x64):
    variant, base, factors, x = setup(shape, rank)
    w = np.asarray(base.value) + np.resize(factors.trainable["d"], shape)  # copies, the last cut
    z = np.random.RandomState(1).randn(2, shape[1])
    rows = np.array([[0, shape[0] - 1], [1, rank % shape[0]]])

    @jax.jit
    def uses(factors):
        products = variant.dot(jnp.asarray(x), base, factors), variant.dot_t(z, base, factors)
        return variant.weight(base, factors), *products, variant.take(rows, base, factors)

    for got, expected in zip(uses(factors), (w, x @ w, z @ w.T, w[rows]), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-12)
    assert variant.count(shape) == factors.trainable["d"].size == rank * shape[1]


@pytest.mark.parametrize("shape, rank", CASES)
def test_the_shard_sees_folded_inputs(shape, rank, x64):
    """The output and the gradient that the docstring's second equation has."""
    variant, base, factors, x = setup(shape, rank)
    g = np.random.RandomState(2).randn(2, 3, shape[1])

    def dot(trainable):
        return variant.dot(jnp.asarray(x), base, Factors(trainable, factors.constants))

    y, pull = jax.vjp(jax.jit(dot), factors.trainable)
    d, folded = np.asarray(factors.trainable["d"]), fold(x, rank)
    np.testing.assert_allclose(y, x @ np.asarray(base.value) + folded @ d, atol=1e-12)
    gradient = np.einsum("btk,bto->ko", folded, g)
    np.testing.assert_allclose(pull(jnp.asarray(g))[0]["d"], gradient, atol=1e-12)


@pytest.mark.parametrize("shape, rank", CASES)
def test_it_starts_at_zero_and_is_not_drawn(shape, rank):
    base = Base(jnp.ones(shape, jnp.bfloat16), "io")
    trainable, constants = MiSS(rank=rank).init(KEY, base)
    assert trainable.keys() == {"d"} and not constants
    assert trainable["d"].shape == (rank, shape[1]) and trainable["d"].dtype == jnp.float32
    assert not trainable["d"].any()


@pytest.mark.parametrize("shape, rank", [((8, 5), 4), ((7, 5), 3)])
def test_dropout_comes_before_folding(shape, rank, x64):
    """So inputs that share a row of D are dropped one by one; the base sees all of them."""
    variant, base, factors, x = setup(shape, rank, dropout=0.4)
    w, d = np.asarray(base.value), np.asarray(factors.trainable["d"])
    dot = jax.jit(lambda key: variant.dot(jnp.asarray(x), base, factors, dropout_key=key))
    for key in jax.random.split(KEY, 3):
        kept = np.asarray(jax.random.bernoulli(key, jnp.asarray(0.6), x.shape))
        dropped = np.where(kept, x / 0.6, 0)
        np.testing.assert_allclose(dot(key), x @ w + fold(dropped, rank) @ d, atol=1e-12)
    np.testing.assert_allclose(dot(None), x @ w + fold(x, rank) @ d, atol=1e-12)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"rank": 0}, "rank must be an integer of at least 1, got 0"),
        ({"rank": 2.0}, "rank must be an integer of at least 1, got 2.0"),
        ({"dropout": 1.0}, "dropout must be in [0, 1), got 1.0"),
        ({"dropout": -0.1}, "dropout must be in [0, 1), got -0.1"),
    ],
)
def test_bad_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        variants.make("miss", **wrong)


def test_ranks_up_to_the_number_of_inputs_are_possible():
    """More outputs or fewer than that do not matter."""
    params, x = {"w": jnp.ones((6, 3))}, jnp.ones((2, 6))

    def init(rank):
        return lj.adapt(lambda p, x: x @ p["w"], MiSS(rank=rank), "w").init(KEY, params, x)

    assert init(6)[0]["adapters"]["w"]["d"].shape == (6, 3)
    with pytest.raises(ValueError, match=re.escape("'w': rank 7 exceeds the 6 inputs of (6, 3)")):
        init(7)


def test_layers_of_a_stack_do_not_differ():
    params, x = {"w": jnp.ones((2, 4, 4))}, jnp.ones((2, 2, 4))
    targets = {lj.layers("w", layer): MiSS(rank=layer + 1) for layer in range(2)}
    with pytest.raises(ValueError, match="'w': layers of one stacked weight cannot mix MiSS"):
        lj.adapt(lambda p, x: x @ p["w"], targets=targets).init(KEY, params, x)
