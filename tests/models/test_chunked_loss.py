"""The chunked cross-entropy: the same numbers as the whole logits give, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small_decoder import random_decoder, random_ids
from zoo.check import random_like

import lora_jax as lj
import variants
from lora_jax.models.parts.completion import next_token_loss, token_losses

BATCH, TOKENS, WIDTH, WORDS = 2, 7, 5, 11


def problem():
    shapes = {"head": (WIDTH, WORDS), "x": (BATCH, TOKENS, WIDTH), "weights": (BATCH, TOKENS)}
    given = {name: np.zeros(s, jax.dtypes.canonicalize_dtype(float)) for name, s in shapes.items()}
    numbers = jax.tree.map(lambda leaf: 3 * np.asarray(leaf), random_like(given, 0))
    return numbers, np.asarray(random_ids(BATCH, TOKENS, WORDS))


def direct(numbers, ids):
    """The losses and their weighted mean from whole logits, by the definition."""
    logits = numbers["x"] @ numbers["head"]
    log_p = logits - jnp.log(jnp.exp(logits).sum(-1, keepdims=True))
    losses = -jnp.take_along_axis(log_p[:, :-1], ids[:, 1:, None], -1)[..., 0]
    weights = jnp.square(numbers["weights"])[:, 1:]
    return losses, (losses * weights).sum() / weights.sum()


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_values_and_gradients_equal_those_of_whole_logits(chunk, x64):
    """In reverse and in forward mode."""
    numbers, ids = problem()

    def chunked(numbers):
        weights = jnp.square(numbers["weights"])
        logits = lambda x: x @ numbers["head"]  # noqa: E731
        return next_token_loss(logits, numbers["x"], ids, weights, chunk)

    def derivatives(loss, numbers):
        slope = jax.jvp(loss, (numbers,), (jax.tree.map(jnp.cos, numbers),))[1]
        return jax.value_and_grad(loss)(numbers), slope

    @jax.jit
    def both(numbers):
        losses = token_losses(lambda x: x @ numbers["head"], numbers["x"], ids, chunk)
        whole = direct(numbers, np.roll(ids, 1, axis=1))[0]
        losses = losses, whole
        return losses, [derivatives(f, numbers) for f in (chunked, lambda n: direct(n, ids)[1])]

    (losses, of_itself), (values, expected) = both(numbers)
    np.testing.assert_allclose(losses[:, :-1], of_itself, rtol=1e-12)
    assert losses.dtype == jnp.float64 and losses.shape == (BATCH, TOKENS)
    for ours, whole in zip(*map(jax.tree.leaves, (values, expected)), strict=True):
        np.testing.assert_allclose(ours, whole, rtol=1e-10, atol=1e-10)


def test_weights_say_which_tokens_count():
    numbers, ids = problem()
    only = np.zeros(ids.shape, np.float32)
    only[1, 4], only[0, 0] = 3, 5  # the first of a row is of nothing, so of no account

    @jax.jit
    def computed(numbers):
        loss = lambda *w: next_token_loss(  # noqa: E731
            lambda x: x @ numbers["head"], numbers["x"], ids, *w, chunk=4
        )
        return (
            direct(numbers, ids)[0],
            loss(),
            loss(jnp.asarray(only)),
            loss(jnp.zeros(ids.shape, bool)),
        )

    losses, plain, weighted, nothing = computed(numbers)
    losses = np.asarray(losses)
    np.testing.assert_allclose(plain, losses.mean(), rtol=1e-6)
    np.testing.assert_allclose(weighted, losses[1, 3], rtol=1e-6)
    assert float(nothing) == 0.0


def test_narrow_states_give_losses_in_float32():
    numbers, ids = problem()
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), numbers)
    losses, exact = jax.jit(
        lambda *both: [token_losses(lambda x: x @ n["head"], n["x"], ids, 4) for n in both]  # noqa: B023
    )(narrow, numbers)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, exact, atol=0.05, rtol=0.02)


@pytest.mark.parametrize(
    ("method", "tied", "target"),
    [("dora", True, "embedding/embedding"), ("lora", False, "head/kernel")],
)
def test_adapted_heads_and_tied_embeddings(method, tied, target, x64):
    options = {"param_dtype": jnp.float64}
    model = random_decoder("llama", options=options, tie_word_embeddings=tied)
    ids = random_ids()
    chunked, params = lj.from_nnx(Loss(model, chunk=3))
    whole, _ = lj.from_nnx(Loss(model, chunk=0))
    targets = [f"model/{target}", "query/kernel"]
    adapted = lj.adapt(chunked, variants.make(method, rank=2), targets=targets)
    _, frozen = jax.eval_shape(adapted.init, jax.random.key(0), params, ids)
    assert {each.use.path for each in frozen.spec.adapted} == {
        f"model/{target}",
        "model/layers/attention/query/kernel",
    }
    uses = lj.discover(chunked, params, ids)[f"model/{target}"]
    assert not any(use.merges for use in uses.uses)

    @jax.jit
    def both(params):
        trainable, frozen = adapted.init(jax.random.key(0), params, ids)
        moved = jax.tree.map(jnp.add, trainable, random_like(trainable, 1))
        ours = jax.value_and_grad(lambda t: adapted.apply(t, frozen, ids))
        merged = jax.value_and_grad(lambda t: whole(adapted.merge(t, frozen), ids))
        return ours(moved), merged(moved)

    for ours, theirs in zip(*map(jax.tree.leaves, both(params)), strict=True):
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
    hidden, table = (random.normal(size=s).astype(np.float32) for s in ((2, 5, 4), (4, 7)))
    targets = random.integers(0, 7, (2, 5)).astype(np.int32)

    @jax.jit
    def both(hidden, table):
        labels = optax.smooth_labels(jax.nn.one_hot(targets, 7), 0.1)
        found = token_losses(lambda x: x @ table, hidden, targets, chunk=2, smoothing=0.1)
        return found, optax.softmax_cross_entropy(hidden @ table, labels)

    np.testing.assert_allclose(*both(hidden, table), rtol=1e-5)
