"""A decoder in chunks, through its cache, beside the same decoder in one call."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cached_chunks import alone, chunks, in_chunks
from drawn_model import run
from flax import nnx
from small_decoder import functional, random_decoder, random_ids

from lora_jax.models.parts import modules
from lora_jax.models.parts.kv_cache import KVCache, cached_step, empty_cache, extend

# Of each way that a cache can be read; random ones in `make parity`.
NAMES = ["qwen2", "gpt2"]
OTHERS = ["llama_yarn", "mistral", "qwen3_windows"]


def compare(decoder, atol):
    """The logits in chunks equal those of one call, token by token."""
    ids, masks = chunks()
    whole, there, mask = alone(ids, masks)
    graph, params = nnx.split(decoder)

    @jax.jit
    def both(params):
        decoder = nnx.merge(graph, params)
        return in_chunks(decoder, ids, masks, 10)[0], decoder(whole, there)

    found, expected = both(params)
    assert found.dtype == expected.dtype
    assert np.isfinite(found).all()  # those of padding too
    expected = np.asarray(expected, np.float64)[there == 1]
    np.testing.assert_allclose(
        np.asarray(found, np.float64)[mask], expected, atol=atol * np.abs(expected).max()
    )


@pytest.mark.parametrize("name", NAMES)
def test_chunks_equal_one_call_in_float64(name, x64):
    compare(random_decoder(name, seed=1, options={"param_dtype": jnp.float64}), 1e-12)


@pytest.mark.parametrize("name", OTHERS)
def test_equal_chunks_equal_one_call_in_float64(name, x64):
    """With one program for all chunks."""
    decoder = random_decoder(name, seed=1, options={"param_dtype": jnp.float64})
    whole, there, mask = alone(*chunks())
    graph, params = nnx.split(decoder)

    @jax.jit
    def after(params, cache, ids, mask):
        decoder = nnx.merge(graph, params)
        hidden, cache = extend(decoder, cache, ids, mask)
        return decoder.logits(hidden), cache

    ids, cache, found = np.concatenate(chunks()[0], 1), empty_cache(decoder, 4, 10), []
    for start in (0, 3, 6):
        here = np.s_[:, start : start + 3]
        logits, cache = after(params, cache, ids[here], mask[here])
        found.append(logits)
    expected = np.asarray(run(decoder, whole, there))[there == 1]
    found = np.concatenate(found, 1)[mask]
    np.testing.assert_allclose(found, expected, atol=1e-12 * np.abs(expected).max())


def test_chunks_equal_one_call_in_bfloat16_with_remat():
    """Rounded to 8 bits, in each of three layers and the head."""
    decoder = random_decoder("qwen2", options={"dtype": jnp.bfloat16, "remat": True})
    cache = empty_cache(decoder, 2, 4)
    assert cache.keys.dtype == cache.values.dtype == jnp.bfloat16
    compare(decoder, 2**-5)


def test_what_a_cache_holds():
    decoder = random_decoder("qwen2")
    cache = empty_cache(decoder, 4, 9)
    assert cache.keys.shape == cache.values.shape == (3, 4, 9, 2, 4)
    assert (cache.capacity, int(cache.filled)) == (9, 0) and not np.asarray(cache.valid).any()
    ids, masks = chunks()
    graph, params = nnx.split(decoder)

    @jax.jit
    def run(params, cache):
        _, after = extend(nnx.merge(graph, params), cache, ids[0], jnp.asarray(masks[0]))
        return after, after.rows(jnp.asarray([2, 0, 2]))

    after, taken = jax.tree.map(np.asarray, run(params, cache))
    assert int(cache.filled) == 0 and int(after.filled) == 5
    np.testing.assert_array_equal(after.valid[:, :5], masks[0])
    assert not after.valid[:, 5:].any()
    held = [row[real].tolist() for row, real in zip(after.positions, after.valid, strict=True)]
    assert held == [[0, 1, 2, 3, 4], [0, 1, 2], [0, 1, 2], [0]]
    assert not after.keys[:, :, 5:].any() and after.keys[:, :, :5].any()
    for field in ("positions", "valid"):
        np.testing.assert_array_equal(getattr(taken, field), getattr(after, field)[[2, 0, 2]])
    for field in ("keys", "values"):
        np.testing.assert_array_equal(getattr(taken, field), getattr(after, field)[:, [2, 0, 2]])


def test_the_step_of_a_decoder():
    decoder = random_decoder("llama")
    step, params = cached_step(decoder)
    ids = random_ids()

    @jax.jit
    def run(params):
        first, cache = step(params, ids[:, :5], capacity=7)
        second, full = step(params, ids[:, 5:7], None, cache)
        return first, second, cache, step(params, ids[:, 7:], None, full)[0]

    first, second, cache, beyond = run(params)
    assert isinstance(cache, KVCache) and cache.capacity == 7
    assert np.isnan(beyond).all()  # under jit a full cache cannot be refused
    assert jax.eval_shape(step, params, ids)[1].capacity == 8
    whole = functional(decoder)[1](params, ids)
    np.testing.assert_allclose(first, whole[:, 4], atol=1e-5)
    np.testing.assert_allclose(second, whole[:, 6], atol=1e-5)
    again, _ = cached_step(random_decoder("llama", seed=5))
    assert step == again and hash(step) == hash(again)  # of other weights, the same program
    assert step != cached_step(random_decoder("qwen2"))[0]


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_the_program_does_not_grow_with_layers_or_tokens(name, monkeypatch):
    monkeypatch.setattr(modules, "UNROLLED", {})
    size = "n_layer" if name == "gpt2" else "num_hidden_layers"

    def lines(layers, capacity):
        step, params = cached_step(random_decoder(name, **{size: layers}))
        run = jax.jit(functools.partial(step, capacity=capacity))
        return run.lower(params, random_ids()).as_text().count("\n")

    assert lines(3, 9) == lines(7, 30)


def test_a_loop_changes_its_cache_in_place(monkeypatch):
    """Beside what it is given, a loop needs far less than a second cache."""
    monkeypatch.setattr(modules, "UNROLLED", {})
    step, params = cached_step(random_decoder("llama", num_hidden_layers=16))
    _, cache = jax.eval_shape(functools.partial(step, capacity=4096), params, random_ids(2, 1))

    def loop(params, cache):
        def one(_, carry):
            token, cache = carry
            logits, cache = step(params, token[:, None], None, cache)
            return jnp.argmax(logits, -1).astype(jnp.int32), cache

        return jax.lax.fori_loop(0, 4000, one, (jnp.zeros(2, jnp.int32), cache))

    memory = jax.jit(loop, donate_argnums=1).lower(params, cache).compile().memory_analysis()
    size = cache.keys.size * 4 * 2
    assert memory.temp_size_in_bytes < size / 2


def test_what_is_refused():
    decoder = random_decoder("gpt2")
    with pytest.raises(ValueError, match="a cache of 33 tokens; the model takes at most 32"):
        empty_cache(decoder, 1, 33)
    with pytest.raises(ValueError, match="65 tokens; the model takes at most 64"):
        empty_cache(random_decoder("llama_dynamic"), 1, 65)
    with pytest.raises(
        ValueError, match="a cache needs at least one row and one slot, got 0 rows of 4 slots"
    ):
        empty_cache(decoder, 0, 4)
    cache = empty_cache(decoder, 2, 6)
    with pytest.raises(ValueError, match=r"input_ids must be \(2, tokens\) as the cache has 2"):
        extend(decoder, cache, random_ids(3, 2))
    with pytest.raises(ValueError, match=r"attention_mask must be \(2, 2\) as input_ids are"):
        extend(decoder, cache, random_ids(2, 2), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="7 tokens do not fit into a cache of 6, of which 0 are"):
        jax.eval_shape(functools.partial(extend, decoder), cache, random_ids(2, 7))
    taken = dataclasses.replace(cache, filled=jnp.int32(4))
    with pytest.raises(ValueError, match="3 tokens do not fit into a cache of 6, of which 4 are"):
        extend(decoder, taken, random_ids(2, 3))
