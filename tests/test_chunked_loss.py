"""The chunked cross-entropy: the same numbers as the whole logits give, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.test_util import check_grads
from small_decoder import random_decoder, random_ids
from zoo.check import random_like

import lora_jax as lj
import variants
from lora_jax.chunked_loss import next_token_loss, token_losses

BATCH, TOKENS, WIDTH, WORDS = 2, 7, 5, 11


def problem():
    given = {"head": jnp.zeros((WIDTH, WORDS)), "x": jnp.zeros((BATCH, TOKENS, WIDTH))}
    given["weights"] = jnp.zeros((BATCH, TOKENS))
    numbers = jax.tree.map(lambda leaf: 3 * leaf, random_like(given, 0))
    return numbers, random_ids(BATCH, TOKENS, WORDS)


def direct(numbers, ids):
    """The losses and their weighted mean from whole logits, by the definition."""
    logits = numbers["x"] @ numbers["head"]
    log_p = logits - jnp.log(jnp.exp(logits).sum(-1, keepdims=True))
    losses = -jnp.take_along_axis(log_p[:, :-1], ids[:, 1:, None], -1)[..., 0]
    weights = jnp.square(numbers["weights"])[:, 1:]
    return losses, (losses * weights).sum() / weights.sum()


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_values_and_gradients_equal_those_of_whole_logits(chunk, x64):
    numbers, ids = problem()

    def chunked(numbers):
        weights = jnp.square(numbers["weights"])
        logits = lambda x: x @ numbers["head"]  # noqa: E731
        return next_token_loss(logits, numbers["x"], ids, weights, chunk)

    losses = token_losses(lambda x: x @ numbers["head"], numbers["x"], ids, chunk)
    of_itself = direct(numbers, jnp.roll(ids, 1, axis=1))[0]
    np.testing.assert_allclose(losses[:, :-1], of_itself, rtol=1e-12)
    assert losses.dtype == jnp.float64 and losses.shape == (BATCH, TOKENS)
    values = jax.jit(jax.value_and_grad(chunked))(numbers)
    expected = jax.value_and_grad(lambda numbers: direct(numbers, ids)[1])(numbers)
    for ours, whole in zip(*map(jax.tree.leaves, (values, expected)), strict=True):
        np.testing.assert_allclose(ours, whole, rtol=1e-10, atol=1e-10)
    if chunk == 3:
        check_grads(chunked, (numbers,), order=1, modes=["fwd", "rev"])


def test_weights_say_which_tokens_count():
    numbers, ids = problem()

    def loss(weights=None):
        return next_token_loss(lambda x: x @ numbers["head"], numbers["x"], ids, weights, 4)

    losses, _ = direct(numbers, ids)
    np.testing.assert_allclose(loss(), losses.mean(), rtol=1e-6)
    only = jnp.zeros(ids.shape).at[1, 4].set(3.0).at[0, 0].set(5.0)  # of nothing, so of no account
    np.testing.assert_allclose(loss(only), losses[1, 3], rtol=1e-6)
    assert float(loss(jnp.zeros(ids.shape, bool))) == 0.0


def test_narrow_states_give_losses_in_float32():
    numbers, ids = problem()
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), numbers)
    losses = token_losses(lambda x: x @ narrow["head"], narrow["x"], ids, 4)
    assert losses.dtype == jnp.float32
    exact = token_losses(lambda x: x @ numbers["head"], numbers["x"], ids, 4)
    np.testing.assert_allclose(losses, exact, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize(
    ("tied", "target"), [(True, "embedding/embedding"), (False, "head/kernel")]
)
def test_adapted_heads_and_tied_embeddings(method, tied, target, x64):
    options = {"param_dtype": jnp.float64}
    model = random_decoder("llama", options=options, tie_word_embeddings=tied)
    ids = random_ids()
    chunked, params = lj.from_nnx(Loss(model, chunk=3))
    whole, _ = lj.from_nnx(Loss(model, chunk=0))
    targets = [f"model/{target}", "query/kernel"]
    adapted = lj.adapt(chunked, variants.make(method, rank=2), targets=targets)
    trainable, frozen = adapted.init(jax.random.key(0), params, ids)
    assert {each.use.path for each in frozen.spec.adapted} == {
        f"model/{target}",
        "model/layers/attention/query/kernel",
    }
    uses = lj.discover(chunked, params, ids)[f"model/{target}"]
    assert not any(use.merges for use in uses.uses)
    moved = jax.tree.map(jnp.add, trainable, random_like(trainable, 1))
    values = jax.jit(jax.value_and_grad(lambda t: adapted.apply(t, frozen, ids)))(moved)
    merged = lambda t: whole(adapted.merge(t, frozen), ids)  # noqa: E731
    expected = jax.jit(jax.value_and_grad(merged))(moved)
    for ours, theirs in zip(*map(jax.tree.leaves, (values, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


class Loss(nnx.Module):
    """A decoder as the function that training differentiates."""

    def __init__(self, model, chunk):
        self.model, self.chunk = model, chunk

    def __call__(self, ids):
        hidden = self.model.hidden(ids)
        if self.chunk:
            return next_token_loss(self.model.logits, hidden, ids, chunk=self.chunk)
        log_p = jax.nn.log_softmax(self.model.logits(hidden))
        return -jnp.take_along_axis(log_p[:, :-1], ids[:, 1:, None], -1).mean()


def test_the_logits_are_never_whole():
    batch, tokens, width, words, chunk = 4, 256, 8, 3000, 16
    shape = jax.ShapeDtypeStruct
    head, x = shape((width, words), jnp.float32), shape((batch, tokens, width), jnp.float32)
    ids = shape((batch, tokens), jnp.int32)

    def loss(head, x, ids, chunk):
        return next_token_loss(lambda x: x @ head, x, ids, chunk=chunk)

    def temporaries(chunk):
        step = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=3)
        return step.lower(head, x, ids, chunk).compile().memory_analysis().temp_size_in_bytes

    whole = batch * tokens * words * 4
    assert temporaries(chunk) < 5 * whole * chunk / tokens
    assert temporaries(tokens) > whole


def test_wrong_calls_are_named():
    numbers, ids = problem()
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        token_losses(lambda x: x, numbers["x"], ids, 0)
    with pytest.raises(ValueError, match=r"targets must be \(2, 7\) .* got \(2, 6\)"):
        token_losses(lambda x: x, numbers["x"], ids[:, 1:])


def test_smoothing_spreads_a_share_of_the_target_over_all_words():
    random = np.random.default_rng(3)
    hidden, table = (jnp.asarray(random.normal(size=s), jnp.float32) for s in ((2, 5, 4), (4, 7)))
    targets = jnp.asarray(random.integers(0, 7, (2, 5)), jnp.int32)
    wanted = optax.softmax_cross_entropy(
        hidden @ table, optax.smooth_labels(jax.nn.one_hot(targets, 7), 0.1)
    )
    found = token_losses(lambda x: x @ table, hidden, targets, chunk=2, smoothing=0.1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
