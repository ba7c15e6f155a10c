"""Texts of different lengths, a token at a time, beside the decoder that reads each as a whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoder import functional, random_decoder

import lora_jax as lj
from lora_jax.generation import lanes as programs
from lora_jax.generation.choose_token import GREEDY
from lora_jax.models.parts import modules
from lora_jax.models.parts.kv_cache import NextStep, begun, cached_step, empty_lanes, written
from lora_jax.models.parts.separate_layers import stacked

TEXTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5], [8, 9, 7, 9, 3, 2, 3, 8, 4]]
GIVEN = [5, 1, 4]
"""How many tokens of each are a prompt."""
CAPACITY, WIDTH = 8, 6


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("name", ["qwen2", "gpt2", "mistral"])
def test_logits_are_those_of_the_whole_text(name, loop, x64, monkeypatch):
    """With layers as separate arrays, and as one in a loop. A row that is full has no numbers."""
    if loop:
        monkeypatch.setattr(modules, "UNROLLED", {})
    decoder = random_decoder(name, seed=2, options={"param_dtype": jnp.float64})
    step, params = cached_step(decoder)
    after = jax.jit(lambda params, ids, mask: step(params, ids, mask))
    ones = jax.jit(
        lambda params, cache, tokens: jax.vmap(
            lambda *x: NextStep(step.graph)(params, *x), (0, 1, 1, 0), (0, 1, 1)
        )(tokens, cache.keys, cache.values, cache.filled)
    )
    _, shapes = jax.eval_shape(after, params, jnp.ones((1, WIDTH), jnp.int32), None)
    layers, _, _, groups, width = shapes.keys.shape
    cache = empty_lanes((layers, 3, groups, CAPACITY, width), jnp.float64)
    for row, (text, count) in enumerate(zip(TEXTS, GIVEN, strict=True)):
        ids = np.zeros((1, WIDTH), np.int32)
        ids[0, WIDTH - count :] = text[:count]
        _, own = after(params, ids, np.arange(WIDTH)[None] >= WIDTH - count)
        cache = begun(cache, jnp.int32(row), own.keys, own.values, jnp.int32(WIDTH - count))
    found = []
    for place in range(5):
        tokens = [text[min(n + place, len(text) - 1)] for n, text in zip(GIVEN, TEXTS, strict=True)]
        logits, keys, values = ones(params, stacked(cache), jnp.asarray(tokens, jnp.int32))
        found.append(np.asarray(logits))
        cache = written(cache, keys, values)
    params, forward = functional(decoder)
    for row, (text, count) in enumerate(zip(TEXTS, GIVEN, strict=True)):
        ids = np.zeros((1, 9), np.int32)
        ids[0, : len(text)] = text
        expected = np.asarray(forward(params, jnp.asarray(ids)))[0]
        for place in range(len(text) - count):
            if count + place < CAPACITY:
                own = expected[count + place]
                np.testing.assert_allclose(found[place][row], own, atol=1e-12 * np.abs(own).max())
            else:
                assert np.isnan(found[place][row]).all()
    assert np.isnan(found[4][2]).all()


@pytest.mark.slow
def test_no_step_copies_the_cache(full_optimization):
    """What programs need beside it is smaller than the keys of one layer; it stays in its place."""
    decoder = random_decoder("llama", head_dim=32, max_position_embeddings=2**14)
    step, params = cached_step(decoder)
    bank = lj.Bank(step, params, capacity=1)
    lanes = programs.empty(bank, 2, 2**14)
    one_layer = lanes.cache.keys.each[0].nbytes
    needs = lambda lowered: lowered.compile().memory_analysis().temp_size_in_bytes  # noqa: E731
    found = jax.eval_shape(programs._next, bank, lanes)
    assert needs(jax.jit(programs._next).lower(bank, lanes)) < one_layer
    assert needs(programs._written.lower(lanes, *found)) < one_layer / 100
    places = [x.unsafe_buffer_pointer() for x in lanes.cache.keys.each]
    lanes, _ = programs.SHARED.admit(bank, lanes, 1, 0, [1, 2, 3], GREEDY)
    lanes, _ = programs.SHARED.advance(bank, lanes)
    assert places == [x.unsafe_buffer_pointer() for x in lanes.cache.keys.each]
