"""Greedy and drawn texts, beside loops that recompute everything and closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_writer
from one_line import refuses
from scipy.stats import chisquare
from small_decoder import functional, random_decoder
from toy_texts import PROMPTS, greedy, padded, toy
from zoo.check import random_like

import lora_jax as lj
import variants
from lora_jax.generation import generate as module
from lora_jax.generation.generate import draw, generate, is_among, right_aligned
from lora_jax.models.parts.kv_cache import cached_step

SETTINGS = {"max_new_tokens": 7, "eos_ids": 0, "pad_id": 9}


def texts(out):
    """The tokens that count, as lists; what follows them must be padding."""
    for row, length in zip(out.tokens, out.lengths, strict=True):
        assert (row[length:] == SETTINGS["pad_id"]).all()
    return [row[:n].tolist() for row, n in zip(np.asarray(out.tokens), out.lengths, strict=True)]


# ---- greedy --------------------------------------------------------------------------------------


def test_greedy_equals_a_loop_that_recomputes_everything(x64):
    """Which reads each prompt by itself, so padding and the rows beside it change nothing."""
    decoder = random_decoder("gpt2", seed=3, options={"param_dtype": jnp.float64})
    params, forward = functional(decoder)

    def log_p(text):
        ids = jnp.asarray([text + [0] * (12 - len(text))], jnp.int32)
        return np.asarray(forward(params, ids))[0, len(text) - 1]

    endless = [greedy(log_p, prompt, (), 7) for prompt in PROMPTS]
    ends = (22, endless[0][3])
    expected = [greedy(log_p, prompt, ends, 7) for prompt in PROMPTS]
    assert expected != endless
    step, _ = cached_step(decoder)
    found = generate(step, (params,), *padded(PROMPTS), **{**SETTINGS, "eos_ids": ends})
    assert texts(found) == expected


@pytest.mark.parametrize(("new", "end"), [(7, 0), (1, None)])
def test_greedy_equals_the_definition(new, end, x64):
    ids, mask = padded(PROMPTS)
    settings = {**SETTINGS, "max_new_tokens": new, "eos_ids": end}
    lengths, start = set(), module._generate._cache_size()
    for seed in range(30):
        weights, given = toy(seed)
        found = texts(generate(toy_writer.step, given, ids, mask, **settings))
        log_p = lambda text: toy_writer.log_probabilities(weights, text)  # noqa: B023, E731
        assert found == [greedy(log_p, prompt, {end}, new) for prompt in PROMPTS]
        lengths |= set(map(len, found))
    assert lengths == {*range(1, new + 1)}  # among them those that end at once, and never
    assert module._generate._cache_size() == start + 1  # other weights, the same program


def test_it_ends_when_all_rows_have():
    calls = []

    def counting(*args, **kwargs):
        jax.debug.callback(lambda: calls.append(1))
        return toy_writer.step(*args, **kwargs)

    ids, mask = padded(PROMPTS)
    for seed in range(10):
        _, given = toy(seed)
        out = generate(counting, given, ids, mask, **{**SETTINGS, "max_new_tokens": 20})
        jax.effects_barrier()
        # the first token needs the prompt alone, every other one a step
        assert len(calls) == int(out.lengths.max())
        calls.clear()


def test_prompts_move_to_the_right():
    ids, mask = padded(PROMPTS, "rlr")
    ids, mask = np.array(ids), np.array(mask)
    ids[2, 1], mask[2, 1] = 7, 0  # a hole
    moved, there = map(np.asarray, jax.jit(right_aligned)(ids, mask))
    held = [row[real].tolist() for row, real in zip(moved, there, strict=True)]
    assert held == [PROMPTS[0], PROMPTS[1], [1, 3, 4]]
    np.testing.assert_array_equal(there.sum(1), [5, 2, 3])
    assert (np.diff(there.astype(int), axis=1) >= 0).all()
    np.testing.assert_array_equal(right_aligned(ids, None)[0], ids)
    found = is_among(jnp.asarray([[1, 2], [3, 4]]), (4, 1))
    np.testing.assert_array_equal(found, [[True, False], [False, True]])


# ---- draws ---------------------------------------------------------------------------------------

LOGITS = np.array([0.3, -1.0, 2.0, 1.1, -0.4, 1.7, 0.9, -3.0])


def truncated(temperature, top_p=1.0, top_k=8):
    """The probabilities in closed form, in float64."""
    p = np.exp(LOGITS / temperature)
    order = np.argsort(-p)
    p[order[top_k:]] = 0
    p /= p.sum()
    fewest = next(n for n in range(1, 9) if p[order[:n]].sum() >= top_p - 1e-12)
    p[order[fewest:]] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    ("temperature", "cut"),
    [
        (1.0, {}),
        (0.7, {"top_p": 0.8}),
        (1.5, {"top_p": 0.35}),
        (2.0, {"top_k": 3}),
        (1.0, {"top_k": 5, "top_p": 0.7}),
        (1.0, {"top_p": 1e-6, "top_k": 100}),
    ],
)
def test_draws_have_the_truncated_distribution(temperature, cut):
    count = 20_000
    keys = jax.random.split(jax.random.key(5), count)
    logits = np.broadcast_to(LOGITS.astype(np.float32), (count, len(LOGITS)))
    found = jax.jit(lambda keys, logits: draw(keys, logits, temperature, **cut))(keys, logits)
    drawn = np.bincount(found, minlength=len(LOGITS))
    p = truncated(temperature, **cut)
    assert drawn[p == 0].sum() == 0
    if (p > 0).sum() > 1:
        assert chisquare(drawn[p > 0], count * p[p > 0]).pvalue > 0.01
        # such a test tells one temperature from another
        other = truncated(1.3 * temperature, **cut)[p > 0]
        assert chisquare(drawn[p > 0], count * other / other.sum()).pvalue < 0.01


def test_drawn_texts_have_the_distribution_of_the_model(x64):
    """Of texts of two tokens: the product of what each is given those before."""
    weights, given = toy(1, words=3, scale=0.7)
    ids = jnp.asarray(np.broadcast_to([[1, 2]], (20_000, 2)))
    settings = {**SETTINGS, "eos_ids": None, "max_new_tokens": 2, "temperature": 1.0}
    out = generate(toy_writer.step, given, ids, key=jax.random.key(2), **settings)
    drawn = np.bincount(np.asarray(out.tokens) @ [3, 1], minlength=9)
    log_p = toy_writer.log_probabilities
    first = np.exp(log_p(weights, [1, 2]))
    second = np.exp([log_p(weights, [1, 2, word]) for word in range(3)])
    expected = (first[:, None] * second).ravel()
    assert chisquare(drawn, 20_000 * expected).pvalue > 0.01
    assert chisquare(drawn, 20_000 * np.outer(first, first).ravel()).pvalue < 1e-3


def test_a_low_temperature_is_greedy(x64):
    ids, mask = padded(PROMPTS)
    start = module._generate._cache_size()
    for seed in range(5):
        weights, given = toy(seed)
        log_p = lambda text: toy_writer.log_probabilities(weights, text)  # noqa: B023, E731
        expected = [greedy(log_p, prompt, {0}, 7) for prompt in PROMPTS]
        for temperature in (1e-3, 1e-300):
            settings = {**SETTINGS, "temperature": temperature, "key": jax.random.key(seed)}
            assert texts(generate(toy_writer.step, given, ids, mask, **settings)) == expected
    assert module._generate._cache_size() == start + 1  # and other temperatures and keys


def test_a_text_is_a_function_of_its_key():
    ids, mask = map(np.asarray, padded(PROMPTS))
    _, given = toy(1, scale=0.5)

    def run(key, ids=ids, mask=mask, top_p=0.9):
        settings = {**SETTINGS, "temperature": 1.2, "top_p": top_p, "key": key}
        return texts(generate(toy_writer.step, given, *map(jnp.asarray, (ids, mask)), **settings))

    start = module._generate._cache_size()
    every = run(jax.random.key(3))
    assert run(jax.random.key(3)) == every != run(jax.random.key(4))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(3))
    assert run(keys) == every
    # and not of its place, nor of the rows beside it
    assert run(keys[::-1], ids[::-1], mask[::-1]) == every[::-1]
    others, their_mask = padded([[1, 2], PROMPTS[1], [4, 4, 2, 1, 2]])
    assert run(keys, others, their_mask)[1] == every[1]
    assert run(keys, top_p=0.1) != every
    assert module._generate._cache_size() == start + 1
    for row in range(3):  # alone, which CPUs compute twice
        alone = slice(row, row + 1)
        assert run(keys[alone], ids[alone], mask[alone]) == every[alone]
    assert module._generate._cache_size() == start + 2


# ---- programs, adapters, memory ------------------------------------------------------------------


def test_adapters_write_what_merged_weights_write(x64):
    decoder = random_decoder("qwen2", options={"param_dtype": jnp.float64})
    forward, params = lj.from_nnx(decoder)
    step, _ = cached_step(decoder)
    ids, mask = padded(PROMPTS)
    names = {"query/kernel": "lora", "(value|up)/kernel": "dora"}
    targets = {pattern: variants.make(name, rank=2) for pattern, name in names.items()}
    adapted = lj.adapt(forward, targets=targets)

    @jax.jit
    def begun(params):
        trainable, frozen = adapted.init(jax.random.key(0), params, ids, mask)
        moved = jax.tree.map(jnp.add, trainable, random_like(trainable, 1))
        return moved, frozen, adapted.merge(moved, frozen)

    moved, frozen, merged = begun(params)
    apply = dataclasses.replace(adapted, forward=step).apply
    found = texts(generate(apply, (moved, frozen), ids, mask, **SETTINGS))
    assert found == texts(generate(step, (merged,), ids, mask, **SETTINGS))
    assert found != texts(generate(step, (params,), ids, mask, **SETTINGS))


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer >= 1, got 0"),
        ({"pad_id": None}, "pad_id must be an integer >= 0, got None"),
        ({"eos_ids": "end"}, "eos_ids must be an integer >= 0, got 'e'"),
        ({"eos_ids": (2, -1)}, "eos_ids must be an integer >= 0, got -1"),
        ({"temperature": -1.0}, "temperature must be 0 .* or above, got -1.0"),
        ({"temperature": 1.0}, "a temperature above 0 needs a key"),
        ({"top_p": 0.9}, "key, top_p and top_k have no effect at a temperature of 0"),
        ({"key": jax.random.key(0)}, "key, top_p and top_k have no effect at a temperature of 0"),
        ({"temperature": 1.0, "key": jax.random.PRNGKey(0)}, "key must be a jax.random.key, or 3"),
        (
            {"temperature": 1.0, "key": jax.random.key(0), "top_p": 0.0},
            r"top_p must be in \(0, 1\], got 0.0",
        ),
        (
            {"temperature": 1.0, "key": jax.random.key(0), "top_k": 0},
            "top_k must be an integer >= 1, got 0",
        ),
        ({"attention_mask": jnp.ones((3, 4))}, r"attention_mask must be \(3, 5\) as input_ids"),
        ({"attention_mask": np.array([[1], [0], [1]]) * np.ones(5)}, "prompt 1 has no token"),
        ({"input_ids": jnp.ones(3)}, r"input_ids must be \(batch, tokens\), got \(3,\)"),
    ],
)
def test_what_is_refused(changes, message):
    ids, mask = padded(PROMPTS)
    given = {"input_ids": ids, "attention_mask": mask, **SETTINGS, **changes}
    refuses(message, generate, toy_writer.step, toy(0)[1], **given)
