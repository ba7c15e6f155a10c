"""Adapted decoders write with a cache, without being merged, and new words train alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoder import random_decoder, random_ids
from zoo.check import random_like

import lora_jax as lj
import variants
from lora_jax.models.parts.kv_cache import cached_step


@pytest.fixture(autouse=True)
def exact():
    with jax.enable_x64():
        yield


@pytest.mark.parametrize("tied", (True, False))
def test_rows_of_new_words_train_and_no_other(tied):
    options = {"param_dtype": jnp.float64}
    sizes = {"vocab_size": 25, "tie_word_embeddings": tied}
    model = random_decoder("llama", options=options, **sizes)
    forward, params = lj.from_nnx(model)
    adapted = lj.adapt(forward, variants.make("trainable_tokens", last=2), "embedding/embedding")
    ids = np.array(random_ids(tokens=6))
    ids[:, 2] = 23

    def gradient(apply, at):
        def loss(at):
            logs = jax.nn.log_softmax(apply(at))
            return -jnp.take_along_axis(logs[:, :-1], ids[:, 1:, None], axis=-1).mean()

        return jax.grad(loss)(at)

    @jax.jit
    def computed(params):
        trainable, frozen = adapted.init(jax.random.key(0), params, ids)
        assert lj.summary(trainable, frozen).trained == 2 * 16
        grads = gradient(lambda t: adapted.apply(t, frozen, ids), trainable)
        after = jax.tree.map(lambda x: x + 1.0, trainable)
        merged = adapted.merge(after, frozen)
        outputs = adapted.apply(after, frozen, ids), forward(merged, ids)
        whole = gradient(lambda p: forward(p, ids), params)
        return grads, whole, (merged["embedding"]["embedding"][...], *outputs)

    grads, whole, computed = computed(params)
    rows = grads["adapters"]["embedding/embedding"]["rows"]
    whole_rows = np.asarray(whole["embedding"]["embedding"][...])[23:]
    np.testing.assert_allclose(rows, whole_rows, rtol=1e-9)
    merged, found, expected = map(np.asarray, computed)
    before = np.asarray(params["embedding"]["embedding"][...])
    np.testing.assert_array_equal(merged[:23], before[:23])
    np.testing.assert_array_equal(merged[23:], before[23:] + 1)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize(
    "method, targets", [("dora", "all-linear"), ("trainable_tokens", "embedding/embedding")]
)
def test_adapters_write_without_being_merged(method, targets):
    model = random_decoder("llama", options={"param_dtype": jnp.float64}, tie_word_embeddings=True)
    forward, params = lj.from_nnx(model)
    adapted = lj.adapt(forward, variants.make(method), targets)
    step, _ = cached_step(model)
    ids = random_ids(tokens=5)

    @jax.jit
    def both(params):
        started, frozen = adapted.init(jax.random.key(1), params, ids)
        trainable = random_like(started, 2)
        apply = dataclasses.replace(adapted, forward=step).apply
        first, cache = apply(trainable, frozen, ids[:, :4], None, None, capacity=5)
        second, _ = apply(trainable, frozen, ids[:, 4:], None, cache)
        return jnp.stack([first, second], 1), adapted.apply(trainable, frozen, ids)[:, 3:]

    found, expected = both(params)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
