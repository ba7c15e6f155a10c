"""Parameters in bfloat16, whose training is compared with that of float32 ones by Optax alone."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lora_jax as lj
import variants
from lora_jax.training.optimizers import KINDS
from lora_jax.training.step import TrainState, eval_params
from lora_jax.transform.adapted_optimizer import MasterState

pytestmark = pytest.mark.usefixtures("standard_promotion")

NUMBERS = {"b1": 0.9, "b2": 0.99, "eps": 1e-8, "momentum": 0.9}
RATE = 1e-4


def _adapted(dtype):
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.bfloat16)}
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    adapted = lj.adapt(lambda p, x: x @ p["w"], None, {"w": variants.make("full")})
    x = jnp.ones((2, 4), dtype)
    return adapted, *adapted.init(jax.random.key(0), params, x)


def _optimizer(kind):
    read = {name: NUMBERS[name] for name in KINDS[kind].reads}
    return KINDS[kind].make(optax.constant_schedule(RATE), {"weight_decay": 0.1, **read})


@pytest.mark.parametrize("kind", ["adamw", "lion", "muon", "schedule_free"])
def test_small_steps_add_up_as_in_float32(kind):
    """Each step is far below the spacing of bfloat16 at 1, which is 1/128."""
    tx, found = _optimizer(kind), {}
    gradients = np.random.default_rng(1).normal(0.5, 1, size=(60, 4, 3)).astype(jnp.bfloat16)
    for dtype in (jnp.bfloat16, jnp.float32):
        adapted, trainable, frozen = _adapted(dtype)
        state = TrainState.create(adapted, tx, trainable, frozen, jax.random.key(1))

        @jax.jit
        def step(state, gradient, adapted=adapted, frozen=frozen):
            grads = {"adapters": {}, "params": {"w": gradient}}
            updates, opt = adapted.optimizer(tx, frozen).update(
                grads, state.opt_state, state.trainable
            )
            after = optax.apply_updates(state.trainable, updates)
            return dataclasses.replace(state, trainable=after, opt_state=opt)

        for each in gradients:
            state = step(state, jnp.asarray(each, dtype))
        found[dtype] = state, eval_params(state)
    (narrow, one), (whole, other) = found[jnp.bfloat16], found[jnp.float32]
    assert isinstance(narrow.opt_state, MasterState)
    assert not isinstance(whole.opt_state, MasterState)
    masters = narrow.opt_state.masters["params"]["w"]
    np.testing.assert_allclose(masters, whole.trainable["params"]["w"], rtol=2e-6, atol=1e-7)
    assert one["params"]["w"].dtype == jnp.bfloat16
    # A number between two of bfloat16's may round either way after another last bit of float32.
    assert (one["params"]["w"] != other["params"]["w"].astype(jnp.bfloat16)).sum() <= 1
    np.testing.assert_array_equal(narrow.trainable["params"]["w"], masters.astype(jnp.bfloat16))


def test_steps_through_zero_add_up_to_what_they_are_in_float32():
    """There, a parameter may miss its master's rounding by 1/256 of the step."""
    start = np.linspace(-1, 1, 257, dtype=np.float32).astype(jnp.bfloat16)
    steps = np.random.default_rng(2).normal(0, 1, size=(40, 257)).astype(np.float32)
    adapted = lj.adapt(lambda p, x: x * p["w"], None, {"w": variants.make("full")})
    now, frozen = adapted.init(jax.random.key(0), {"w": jnp.asarray(start)}, jnp.ones(257))
    tx = adapted.optimizer(optax.sgd(1.0), frozen)
    state, size = tx.init(now), np.zeros(257)
    for each in steps.astype(jnp.bfloat16):
        grads = {"adapters": {}, "params": {"w": jnp.asarray(each)}}
        updates, state = tx.update(grads, state, now)
        now = optax.apply_updates(now, updates)
        size += np.abs(each.astype(np.float64))
    exact = start.astype(np.float64) - steps.astype(jnp.bfloat16).astype(np.float64).sum(0)
    error = np.abs(np.asarray(now["params"]["w"], np.float64) - exact)
    assert (error <= size / 256 + np.abs(exact) / 256).all()


def test_moments_of_narrow_parameters_are_wide_and_factors_keep_theirs():
    adapted, trainable, frozen = _adapted(jnp.bfloat16)
    state = adapted.optimizer(optax.adam(RATE), frozen).init(trainable)
    assert {x.dtype for x in jax.tree.leaves(state) if x.ndim} == {jnp.dtype(jnp.float32)}
    lora = lj.adapt(adapted.forward, None, {"w": variants.make("lora", rank=2)})
    params = adapted.merge(trainable, frozen)
    factors, frozen = lora.init(jax.random.key(0), params, jnp.ones((2, 4), jnp.bfloat16))
    state = lora.optimizer(optax.adam(RATE), frozen).init(factors)
    chex.assert_trees_all_equal(state, optax.adam(RATE).init(factors))


def test_a_parameter_that_was_set_since_is_stepped_from_there():
    adapted, trainable, frozen = _adapted(jnp.bfloat16)
    tx = adapted.optimizer(optax.sgd(0.25), frozen)
    state = tx.init(trainable)
    given = {"adapters": {}, "params": {"w": jnp.full((4, 3), 2.0, jnp.bfloat16)}}
    grads = jax.tree.map(jnp.ones_like, given)
    updates, state = tx.update(grads, state, given)
    np.testing.assert_array_equal(optax.apply_updates(given, updates)["params"]["w"], 1.75)
    with pytest.raises(ValueError, match="call update"):
        tx.update(grads, state)
