"""Beam search beside searches written out in plain Python, and beside all texts there are."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_writer
from one_line import refuses
from small_decoder import functional, random_decoder
from toy_texts import PROMPTS, completes, padded, search, toy

import lora_jax as lj
import variants
from lora_jax.generation import beam_search as module
from lora_jax.generation.beam_search import beam_search, repeating
from lora_jax.models.parts.kv_cache import cached_step
from lora_jax.models.parts.separate_layers import separate

SETTINGS = {"max_new_tokens": 6, "eos_ids": 0, "pad_id": 9, "no_repeat_ngram_size": 0}


def found(out, row=0):
    """The texts of a row with their scores, without those that there are not."""
    rows = zip(np.asarray(out.tokens[row]), out.lengths[row], out.scores[row], strict=True)
    texts = []
    for tokens, length, score in rows:
        assert (tokens[length:] == SETTINGS["pad_id"]).all()
        assert (length > 0) == np.isfinite(score)
        texts += [(tokens[:length].tolist(), float(score))] if length else []
    return texts


def assert_same(ours, expected):
    assert [text for text, _ in ours] == [text for text, _ in expected]
    np.testing.assert_allclose([s for _, s in ours], [s for _, s in expected], rtol=1e-10)


def every_text(weights, prompt, limit, ends):
    """All texts that there are, with the sums of their log-probabilities."""
    texts, unfinished = [], [([], 0.0)]
    for length in range(1, limit + 1):
        longer = [
            ([*text, word], total + p)
            for text, total in unfinished
            for word, p in enumerate(toy_writer.log_probabilities(weights, [*prompt, *text]))
        ]
        texts += [each for each in longer if each[0][-1] in ends or length == limit]
        unfinished = [each for each in longer if each[0][-1] not in ends]
    return texts


@pytest.mark.parametrize("penalty", [0.0, 0.9, -1.0])
def test_with_enough_beams_it_finds_all_texts_in_their_order(penalty, x64):
    ids, mask = padded([[1, 2, 0], [2]])
    settings = {**SETTINGS, "max_new_tokens": 4, "beams": 32, "length_penalty": penalty}
    for seed in range(3):
        weights, given = toy(seed, words=3)
        out = beam_search(toy_writer.step, given, ids, mask, **settings)
        for row, prompt in enumerate([[1, 2, 0], [2]]):
            texts = every_text(weights, prompt, 4, {0})
            assert len(texts) == 1 + 2 + 4 + 8 * 3
            np.testing.assert_allclose(sum(np.exp(total) for _, total in texts), 1)
            texts = [(text, total / len(text) ** penalty) for text, total in texts]
            assert_same(found(out, row), sorted(texts, key=lambda each: -each[1]))


@pytest.mark.parametrize(
    ("static", "plain"),
    [
        ({"beams": 3, "early_stopping": True}, {"early": True}),
        (
            {"beams": 3, "early_stopping": "never", "eos_ids": (0, 3, 4)},
            {"early": "never", "ends": (0, 3, 4)},
        ),
        ({"beams": 2, "no_repeat_ngram_size": 2}, {"size": 2}),
        (
            {"beams": 3, "no_repeat_ngram_size": 1, "prompt_ngrams": False},
            {"size": 1, "own": True},
        ),
    ],
)
def test_it_equals_a_search_written_out(static, plain, x64):
    ids, mask = padded(PROMPTS)
    lengths, differ, start = set(), 0, module._search._cache_size()
    for seed, penalty in enumerate([0.5, 0.9, 1.0, 2.0, 0.0, -0.5, 1.0, 0.9]):
        weights, given = toy(seed, scale=1.5 if seed % 2 else 0.6)
        settings = {**SETTINGS, **static, "length_penalty": penalty}
        out = beam_search(toy_writer.step, given, ids, mask, **settings)
        for row, prompt in enumerate(PROMPTS):
            log_p = lambda text: toy_writer.log_probabilities(weights, text)  # noqa: B023, E731
            given_plain = {"beams": static["beams"], "penalty": penalty, **plain}
            expected = search(log_p, prompt, **given_plain)
            assert_same(found(out, row), expected)
            lengths |= {len(text) for text, _ in expected}
            without = {"beams": static["beams"], "penalty": penalty}
            differ += search(log_p, prompt, **without) != expected
    assert len(lengths) > 2
    assert differ  # the setting acts
    assert module._search._cache_size() == start + 1  # other weights and penalties, one program


def test_the_cache_of_a_decoder_follows_its_texts(x64):
    decoder = random_decoder("qwen2", seed=3, options={"param_dtype": jnp.float64})
    params, forward = functional(decoder)

    def log_p(text):
        ids = jnp.asarray([text + [0] * (11 - len(text))], jnp.int32)
        logits = np.asarray(forward(params, ids))[0, len(text) - 1]
        return logits - np.log(np.exp(logits).sum())

    step, _ = cached_step(decoder)
    settings = {**SETTINGS, "eos_ids": 8, "no_repeat_ngram_size": 3, "beams": 3}
    out = beam_search(step, (params,), *padded(PROMPTS), **settings)
    for row, prompt in enumerate(PROMPTS):
        expected = search(log_p, prompt, ends=(8,), beams=3, penalty=0.9, size=3)
        assert_same(found(out, row), expected)


def test_it_ends_when_all_rows_have():
    """With an end that is certain, after one step."""
    calls = []

    def ends(weights, ids, mask=None, cache=None, capacity=None):
        jax.debug.callback(lambda: calls.append(1))
        logits, cache = toy_writer.step(weights, ids, mask, cache)
        return logits.at[:, 0].set(100.0), cache

    ids, mask = padded(PROMPTS)
    out = beam_search(ends, toy(0)[1], ids, mask, **{**SETTINGS, "beams": 1, "max_new_tokens": 20})
    jax.effects_barrier()
    assert len(calls) == 1
    np.testing.assert_array_equal(out.lengths, 1)
    np.testing.assert_array_equal(out.tokens[:, 0, 0], 0)


def test_where_nothing_can_follow_there_is_no_text():
    """All five words have been, and none may come again."""
    settings = {**SETTINGS, "no_repeat_ngram_size": 1, "beams": 2}
    ids = jnp.asarray([[0, 1, 2, 3, 4]], jnp.int32)
    assert found(beam_search(toy_writer.step, toy(0)[1], ids, **settings)) == []


@pytest.mark.parametrize("size", [1, 2, 3, 12])
def test_what_has_been_in_a_row(size):
    random = np.random.default_rng(size)
    history = random.integers(0, 3, (2, 20, 10)).astype(np.int32)
    history[:, ::3, :2] = -1
    banned = jax.jit(repeating, static_argnums=(2, 3))
    count = 0
    for length in (1, 4, 9, 10):
        ours = banned(jnp.asarray(history), jnp.int32(length), size, 4)
        assert ours.shape == (2, 20, 4)
        for found, text in zip(ours.reshape(-1, 4), history.reshape(-1, 10), strict=True):
            known = [int(word) for word in text[:length] if word >= 0]
            expected = [completes(known, word, size) for word in range(4)]
            np.testing.assert_array_equal(found, expected)
            count += sum(expected)
    assert count > 0 or size > 4


def test_weights_are_there_once():
    """Beside them and ten caches of 8 tokens, a search needs less than two layers of the eight."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8}
    decoder = random_decoder("llama", **sizes)
    forward, params = lj.from_nnx(decoder)
    step, _ = cached_step(decoder)
    ids = jnp.ones((1, 4), jnp.int32)
    adapted = lj.adapt(forward, variants.make("lora", rank=2), targets="attention/.*/kernel")
    given = separate(jax.jit(adapted.init)(jax.random.key(0), params, ids))
    static = {"beams": 10, "ngram": 0, "prompt_ngrams": True, "early_stopping": False}
    static |= {"max_new_tokens": 5, "eos_ids": (2,), "pad_id": 0}
    apply = dataclasses.replace(adapted, forward=step).apply
    compiled = module._search.lower(apply, given, ids, None, 0.9, **static).compile()
    needed = compiled.memory_analysis().temp_size_in_bytes

    def size(tree):
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    _, cache = jax.eval_shape(functools.partial(step, capacity=8), params, ids)
    assert needed < 2 * 10 * size(cache) + size(params) / 4
    assert 10 * size(cache) < size(params) / 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beams": 0}, "beams must be an integer >= 1, got 0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be an integer >= 0, got -1"),
        ({"early_stopping": "soon"}, "early_stopping must be True, False or 'never', got 'soon'"),
        ({"early_stopping": 1}, "early_stopping must be True, False or 'never', got 1"),
        ({"eos_ids": (0, 1, 2, 3, 4)}, "5 eos_ids leave no other token in a vocabulary of 5"),
        ({"length_penalty": "long"}, "length_penalty must be a number, got 'long'"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer >= 1, got 0"),
    ],
)
def test_what_is_refused(changes, message):
    refuses(
        message,
        beam_search,
        toy_writer.step,
        toy(0)[1],
        *padded(PROMPTS),
        **{**SETTINGS, **changes},
    )
