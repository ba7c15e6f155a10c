"""Tokens of texts with settings of their own, beside those that `draw` gives each of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.generation import choose_token
from lora_jax.generation.choose_token import FAILED, Sampling, Settings, choose
from lora_jax.generation.generate import draw

KINDS = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.6, "top_p": 0.9},
    {"temperature": 2.0, "top_k": 3},
    {"temperature": 1.5, "top_k": 7, "top_p": 0.5},
    {"temperature": 3.0, "top_p": 0.999},
    {"temperature": 3.0, "top_p": 0.7},  # four of twenty have most, but not so much
    {"temperature": 1e-30, "top_p": 0.5},
    {"temperature": 1.0, "top_k": 30},
]
SAME = [[Sampling(**kind, seed=2**32 - 1 - i) for i in range(len(KINDS))] for kind in KINDS]
MIXED = list(zip(*SAME, strict=True))


def program():
    """`choose` of texts, traced anew."""

    @jax.jit
    def run(settings, logits, index):
        return choose(logits, settings, index, jnp.ones(index.shape, bool))

    def together(samplings, logits, index):
        settings = jax.tree.map(lambda *x: jnp.stack(x), *map(Settings.of, samplings))
        return np.asarray(run(settings, logits, index)).tolist()

    return together


TOGETHER = program()


def alone(sampling, logits, index):
    if sampling.temperature == 0:
        return int(jnp.argmax(logits))
    key = jax.random.fold_in(jax.random.key(sampling.seed), int(index))
    top_p = sampling.top_p if sampling.top_p < 1 else None
    return int(
        draw(key[None], logits[None], sampling.temperature, top_p, sampling.top_k or None)[0]
    )


@pytest.mark.parametrize("few", [1, 4, 1024])
@pytest.mark.parametrize("wide", [False, True])
def test_each_is_what_its_own_settings_draw(few, wide, monkeypatch):
    """Whether or not the likeliest few suffice."""
    monkeypatch.setattr(choose_token, "FEW", few)
    with jax.enable_x64(wide):
        random, together = np.random.default_rng(few), program()
        index = jnp.arange(5, 5 + len(KINDS), dtype=jnp.int32)
        logits = jnp.asarray(3 * random.standard_normal((len(KINDS), 20)), float)
        for samplings in (*SAME, *MIXED):
            expected = [alone(*each) for each in zip(samplings, logits, index, strict=True)]
            assert together(samplings, logits, index) == expected, samplings


@pytest.mark.parametrize("top_k", [0, 1, 50, 1024, 1025, 2000, 5000])
def test_large_vocabularies(top_k):
    """More tokens than are looked at first, of which any number may be drawn."""
    random, texts = np.random.default_rng(0), 48
    logits = jnp.asarray(random.standard_normal((texts, 3000)), jnp.float32)
    index = jnp.arange(texts, dtype=jnp.int32)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(i), i))(index)
    for top_p in (0.1, 0.9, 0.99, 1):
        samplings = [Sampling(1.5, top_p, top_k, seed) for seed in range(texts)]
        expected = draw(keys, logits, 1.5, top_p if top_p < 1 else None, top_k or None)
        assert TOGETHER(samplings, logits, index) == expected.tolist(), top_p


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_probabilities_that_add_up_exactly_are_enough(count):
    """Of four that are equal, a half is that of two: of the first, as they are equal."""
    texts = 48
    samplings = [Sampling(1.0, count / 4, seed=seed) for seed in range(texts)]
    index = jnp.zeros(texts, jnp.int32)
    logits = jnp.zeros((texts, 4))
    found = TOGETHER(samplings, logits, index)
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 0))(jnp.arange(texts))
    assert draw(keys, logits, 1.0, count / 4).tolist() == found
    assert {*found} == {*range(count)}


def test_what_is_no_number_is_no_token():
    logits = np.zeros((4, 5), np.float32)
    logits[0, 2], logits[1, 3], logits[2] = np.nan, np.inf, -np.inf
    logits[3, :4] = -np.inf  # a token that cannot be is not an error
    index = jnp.zeros(4, jnp.int32)
    together = program()
    for sampling in (Sampling(), Sampling(1.0), Sampling(1.0, top_p=0.5)):
        assert together([sampling] * 4, jnp.asarray(logits), index) == [FAILED] * 3 + [4]
