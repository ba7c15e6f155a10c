"""A training step follows the plain gradient of the weighted mean, and is compiled once."""

import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_training import ADAM, SGD, batches, forward, make, own, problem

import lora_jax as lj
import variants
from lora_jax.training.step import TrainState, cross_entropy, make_step, make_train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_a_step_is_gradient_descent_on_the_weighted_mean():
    adapted, trainable, frozen = problem()
    tx = SGD
    batch = next(batches(2))
    kept = batch["weight"] > 0
    assert 0 < kept.sum() < len(kept)

    def loss(trainable):
        logits = forward(adapted.merge(trainable, frozen), batch["x"][kept])
        picked = jax.nn.log_softmax(logits)[np.arange(kept.sum()), batch["label"][kept]]
        return -picked.mean()

    value, grads = jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(loss))(trainable))
    expected = jax.tree.map(lambda p, g: np.asarray(p) - 0.1 * g, trainable, grads)
    norm = sum(np.square(g).sum() for g in jax.tree.leaves(grads)) ** 0.5
    state = TrainState.create(adapted, tx, own(trainable), frozen, jax.random.key(1))
    state, metrics = make(adapted, tx)(state, frozen, batch)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    for ours, theirs in zip(
        jax.tree.leaves(state.trainable), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert int(state.step) == 1


def test_accumulation_gives_the_same_gradient():
    """Of one row at a time, some of which only fill the batch."""
    adapted, trainable, frozen = problem()
    tx = SGD
    results = []
    for accumulate in (1, 8):
        state = TrainState.create(adapted, tx, own(trainable), frozen, jax.random.key(1))
        state, metrics = make(adapted, tx, accumulate)(state, frozen, next(batches(2)))
        results.append((state.trainable, metrics))
    for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_many_parts_of_bfloat16_are_summed_in_float32():
    """256 gradients that are 1/256 of the first: a sum in bfloat16 would lose all of them."""
    weights = np.ones(257, np.float32)
    rows = np.concatenate([[1.0], np.full(256, 1 / 256)]).astype(np.float32)
    adapted = lj.adapt(
        lambda params, x: x[:, None] @ params["head"], variants.make("full"), targets=["head"]
    )
    trainable, frozen = adapted.init(
        jax.random.key(0), {"head": jnp.ones((1, 1), jnp.bfloat16)}, jnp.ones(1, jnp.bfloat16)
    )

    def predict(trainable, frozen, batch, rng):
        return adapted.apply(trainable, frozen, batch["x"].astype(jnp.bfloat16))

    norms = []
    for accumulate in (1, 257):
        step = make_train_step(
            adapted, SGD, predict, lambda y, _: y[:, 0].astype(jnp.float32), accumulate
        )
        state = TrainState.create(adapted, SGD, own(trainable), frozen, jax.random.key(1))
        _, metrics = step(state, frozen, {"x": rows, "weight": weights})
        norms.append(float(metrics["grad_norm"]))
    np.testing.assert_allclose(norms, 2 / 257, rtol=2**-7)


def test_a_clip_and_a_decay_that_cannot_work_are_refused():
    adapted, trainable, frozen = problem()
    with pytest.raises(ValueError, match=r"clip must be above 0, got -1\.0"):
        make_train_step(adapted, SGD, None, None, clip=-1.0)
    with pytest.raises(ValueError, match="accumulate must be an integer of at least 1, got 0"):
        make_train_step(adapted, SGD, None, None, accumulate=0)
    with pytest.raises(ValueError, match="ema must be at least 0 and below 1, got 1"):
        make_train_step(adapted, SGD, None, None, ema=1.0)
    state = TrainState.create(adapted, SGD, own(trainable), frozen, jax.random.key(1))
    step = make_train_step(adapted, SGD, lambda *_: jnp.zeros(()), lambda *_: jnp.zeros(1), ema=0.9)
    with pytest.raises(ValueError, match="ema is for a state with averaged=True"):
        step(state, frozen, {"weight": jnp.ones(1)})
    parts = make_train_step(adapted, SGD, lambda *_: jnp.zeros(()), lambda *_: jnp.zeros(1), 2)
    with pytest.raises(ValueError, match="a batch of 3 rows has no 2 equal parts"):
        parts(state, frozen, {"weight": jnp.ones(3)})


def test_parts_of_a_batch_have_keys_of_their_own_and_one_penalty():
    adapted, trainable, frozen = problem()
    penalised = types.SimpleNamespace(
        penalty=lambda *_: jnp.asarray(3.0), optimizer=adapted.optimizer, update=adapted.update
    )

    def drawn(trainable, frozen, batch, rng):
        return jnp.broadcast_to(jax.random.normal(rng), batch["weight"].shape)

    step = make_step(penalised, drawn, lambda each, batch: each, accumulate=2)
    state = TrainState.create(adapted, SGD, trainable, frozen, jax.random.key(1))
    batch = next(batches(0))
    _, metrics = jax.jit(functools.partial(step, SGD, None))(state, frozen, batch)
    keys = jax.random.split(jax.random.fold_in(state.rng, 0), 2)
    wanted = np.mean([jax.random.normal(key) for key in keys]) + 3
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-5)


def test_a_method_sees_each_step_and_what_it_makes_of_it_goes_on_and_is_averaged():
    adapted, trainable, frozen = problem()

    def update(state, before, after, grads, step, frozen):
        seen = {"before": before, "after": after, "norm": optax.tree.norm(grads), "step": step}
        return seen, jax.tree.map(lambda x: x / 2, after)

    halving = types.SimpleNamespace(
        penalty=adapted.penalty, optimizer=adapted.optimizer, update=update
    )

    def predict(trainable, frozen, batch, rng):
        return adapted.apply(trainable, frozen, batch["x"], dropout_key=rng)

    step, clip, ends = make_step(halving, predict, cross_entropy), 0.01, []
    state = TrainState.create(adapted, SGD, trainable, frozen, jax.random.key(1), averaged=True)
    for number, batch in zip(range(2), batches(0), strict=False):
        before = state.trainable
        run = jax.jit(functools.partial(step, SGD, clip, ema=0.5))
        state, metrics = run(state, frozen, batch)
        seen = state.variant_state
        assert seen["step"] == number and metrics["grad_norm"] > clip
        np.testing.assert_allclose(seen["norm"], clip, rtol=1e-5)
        chex.assert_trees_all_equal(seen["before"], before)
        chex.assert_trees_all_close(state.trainable, jax.tree.map(lambda x: x / 2, seen["after"]))
        ends.append(state.trainable)
    average = jax.tree.map(lambda one, two: (one / 2 + two) / 1.5, *ends)
    chex.assert_trees_all_close(state.average.value(state.trainable), average, rtol=1e-5)


def test_the_state_is_donated_and_the_frozen_weights_are_not():
    adapted, trainable, frozen = problem()
    tx = ADAM
    before = jax.tree.map(np.array, frozen.base)
    state = TrainState.create(adapted, tx, own(trainable), frozen, jax.random.key(1))
    step = make(adapted, tx)
    new, _ = step(state, frozen, next(batches(0)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.trainable))
    for _ in range(3):
        new, _ = step(new, frozen, next(batches(0)))
    for path, value in frozen.base.items():
        np.testing.assert_array_equal(value, before[path])


def test_one_compilation_for_all_steps_of_one_shape_and_other_dropout_in_each():
    """Nothing else moves the loss of one batch at a rate of zero."""
    adapted, trainable, frozen = problem(dropout=0.1)
    tx = optax.adam(optax.linear_schedule(0.0, 0.0, 10))
    step = make(adapted, tx)
    moved = jax.tree.map(lambda x: jnp.asarray(np.array(x) + np.float32(0.3)), trainable)
    state = TrainState.create(adapted, tx, moved, frozen, jax.random.key(1))
    losses = set()
    for _ in range(5):
        state, metrics = step(state, frozen, next(batches(0)))
        losses.add(float(metrics["loss"]))
    assert step._cache_size() == 1 and len(losses) == 5
