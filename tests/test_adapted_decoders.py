"""Adapted decoders stay causal, whatever the method, and new words train alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_model import run
from small_decoder import random_decoder, random_ids
from zoo.check import random_like

import lora_jax as lj
import variants
from lora_jax.models.kv_cache import cached_step
from lora_jax.models.vocabulary import extend_vocabulary

RANK = {"rank": 3}
SETTINGS = {"lora": RANK, "dora": RANK, "hira": RANK, "miss": RANK}
SETTINGS |= {"adalora": {"rank": 3, "target_rank": 2}}
METHODS = ("lora", "dora", "adalora", "vera", "hira", "miss", "ia3", "trainable_tokens")
FAMILIES = ("mistral", "qwen2", "qwen3", "gpt2")
CASES = [("llama", method) for method in METHODS] + [(family, "lora") for family in FAMILIES]
CASES += [("gpt2", "dora"), ("gpt2", "vera")]


@pytest.fixture(autouse=True)
def exact():
    with jax.enable_x64():
        yield


def adapt(model, method, targets="all-linear"):
    """The model with random factors."""
    forward, params = lj.from_nnx(model)
    adapted = lj.adapt(forward, variants.make(method, **SETTINGS.get(method, {})), targets)
    given = (jax.random.key(1), params, random_ids())
    trainable, _ = jax.eval_shape(adapted.init, *given)
    frozen = jax.jit(lambda *given: adapted.init(*given)[1])(*given)
    return adapted, random_like(trainable, 2), frozen


@pytest.mark.parametrize(("family", "method"), CASES)
def test_no_token_sees_what_follows_it(family, method):
    model = random_decoder(family, options={"param_dtype": jnp.float64})
    targets = "embedding/embedding" if method == "trainable_tokens" else "all-linear"
    adapted, trainable, frozen = adapt(model, method, targets)
    if method != "trainable_tokens":  # neither the embedding nor the head
        assert len(frozen.spec.adapted) == (6 if family == "gpt2" else 7)
    ids = random_ids(tokens=7, seed=4)
    other = ids.at[:, 4:].set((ids[:, 4:] + 1) % 23)
    apply = jax.jit(adapted.apply)
    first, second = (np.asarray(apply(trainable, frozen, each)) for each in (ids, other))
    np.testing.assert_array_equal(first[:, :4], second[:, :4])
    assert (first[:, 4:] != second[:, 4:]).any()
    still = jax.tree.map(np.zeros_like, trainable)
    assert not np.allclose(first, apply(still, frozen, ids))


@pytest.mark.parametrize("tied", (True, False))
def test_new_words_begin_as_the_mean_of_all_and_leave_the_others_alone(tied):
    options = {"param_dtype": jnp.float64}
    model = random_decoder("llama", options=options, tie_word_embeddings=tied)
    larger = extend_vocabulary(model, 2)
    ids = random_ids()
    before, after = (np.asarray(run(each, ids)) for each in (model, larger))
    assert after.shape == (*before.shape[:-1], 25)
    np.testing.assert_allclose(after[..., :23], before, rtol=1e-12)
    mean = before.mean(axis=-1)
    np.testing.assert_allclose(after[..., 23], mean, rtol=1e-5, atol=1e-6)
    assert model.config.vocab_size == 23 and larger.config.vocab_size == 25


@pytest.mark.parametrize("tied", (True, False))
def test_rows_of_new_words_train_and_no_other(tied):
    options = {"param_dtype": jnp.float64}
    model = extend_vocabulary(random_decoder("llama", options=options, tie_word_embeddings=tied), 2)
    forward, params = lj.from_nnx(model)
    adapted = lj.adapt(forward, variants.make("trainable_tokens", last=2), "embedding/embedding")
    ids = random_ids(tokens=6).at[:, 2].set(23)
    trainable, frozen = jax.jit(adapted.init)(jax.random.key(0), params, ids)
    assert lj.summary(trainable, frozen).trained == 2 * 16

    def loss(apply):
        def of(tree):
            logs = jax.nn.log_softmax(apply(tree))
            return -jnp.take_along_axis(logs[:, :-1], ids[:, 1:, None], axis=-1).mean()

        return jax.jit(jax.grad(of))

    grads = loss(lambda t: adapted.apply(t, frozen, ids))(trainable)
    whole = loss(lambda p: forward(p, ids))(params)
    rows = grads["adapters"]["embedding/embedding"]["rows"]
    whole_rows = np.asarray(whole["embedding"]["embedding"][...])[23:]
    np.testing.assert_allclose(rows, whole_rows, rtol=1e-9)

    @jax.jit
    def moved(trainable, frozen):
        trainable = jax.tree.map(lambda x: x + 1.0, trainable)
        merged = adapted.merge(trainable, frozen)
        found, expected = adapted.apply(trainable, frozen, ids), forward(merged, ids)
        return merged["embedding"]["embedding"][...], found, expected

    merged, found, expected = map(np.asarray, moved(trainable, frozen))
    before = np.asarray(params["embedding"]["embedding"][...])
    np.testing.assert_array_equal(merged[:23], before[:23])
    np.testing.assert_array_equal(merged[23:], before[23:] + 1)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("method", ("lora", "dora", "trainable_tokens"))
def test_adapters_write_without_being_merged(method):
    model = random_decoder("llama", options={"param_dtype": jnp.float64}, tie_word_embeddings=True)
    targets = "embedding/embedding" if method == "trainable_tokens" else "all-linear"
    adapted, trainable, frozen = adapt(model, method, targets)
    step, _ = cached_step(model)
    ids = random_ids(tokens=5)

    @jax.jit
    def both(trainable, frozen):
        apply = dataclasses.replace(adapted, forward=step).apply
        first, cache = apply(trainable, frozen, ids[:, :4], None, None, capacity=5)
        second, _ = apply(trainable, frozen, ids[:, 4:], None, cache)
        return jnp.stack([first, second], 1), adapted.apply(trainable, frozen, ids)[:, 3:]

    found, expected = both(trainable, frozen)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
