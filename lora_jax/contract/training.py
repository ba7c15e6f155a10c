"""Clauses about training: it works, is reproducible, and changes nothing that is not its own."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax
from jax import Array

from lora_jax.contract import toys
from lora_jax.contract.clause import (
    clause,
    quick_jit,
    require,
    require_close,
    require_identical,
    require_same_form,
)
from lora_jax.contract.toys import Toy
from lora_jax.transform.adapt import Adapted
from lora_jax.transform.placement import Frozen, Trainable
from lora_jax.transform.prune import prune
from lora_jax.variant import Variant

STEPS = 20


@clause
def learns_by_training(variant: Variant) -> None:
    """A toy loss falls in 20 steps of the variant's own optimiser, penalty and update."""
    losses = _train(toys.training_toy(variant), STEPS)[1]
    require(np.all(np.isfinite(losses)), f"the losses of the toy are {losses}")
    fallen = f"from {losses[0]:.4f} to {losses[-1]:.4f} in {STEPS} steps"
    require(losses[-1] < 0.99 * losses[0], f"the toy loss goes {fallen} (expected: down by 1%)")


@clause
def the_same_key_gives_the_same_run(variant: Variant) -> None:
    """Two runs with the same key are the same bit by bit, dropout included."""
    first, again = (_train(toys.small_training_toy(variant), 3) for _ in range(2))
    require_identical("a second run", again, first)


@clause
def training_leaves_the_base_alone(variant: Variant) -> None:
    """No frozen array changes by a bit, and donating trainables deletes none of the user's arrays.

    So without the adapters, the base model is exactly as it was.
    """
    toy = toys.small_training_toy(variant)
    theirs = toy.params, toy.frozen
    before = jax.tree.map(np.array, theirs)
    _train(toy, 3)
    deleted = sum(leaf.is_deleted() for leaf in jax.tree.leaves(theirs))
    require(not deleted, f"training deleted {deleted} arrays that it does not own")
    require_identical("a frozen array", theirs, before)


@clause
def instances_share_no_state(variant: Variant) -> None:
    """Training one adapted model changes nothing for another."""
    alone, _ = _train(toys.small_training_toy(variant), 2)
    twin = dataclasses.replace(variant)
    first, second = (toys.small_training_toy(each) for each in (variant, twin))
    _train(second, 1)
    require_identical("training beside another instance", _train(first, 2)[0], alone)


@clause
def pruning_changes_nothing(variant: Variant) -> None:
    """After `prune`, adapters have the same effect as before."""
    if type(variant).prune is Variant.prune:
        return
    toy = toys.toy(variant)
    _, states = _begin(toy.adapted, toy.moved, toy.frozen)
    less, smaller = prune(toy.moved, toy.frozen, states)
    got = dataclasses.replace(toy, frozen=smaller).output(less)
    require_close("the output after pruning", got, toy.output(toy.moved))


def _train(toy: Toy, steps: int) -> tuple[Trainable, list[float]]:
    """The last trainables, and the loss at each step; the toy's trainables are donated."""
    carry = toy.trainable, *_begin(toy.adapted, toy.trainable, toy.frozen)
    form = jax.eval_shape(lambda: toy.trainable)
    losses = []
    for number in range(steps):
        carry, loss = _step(toy.adapted, carry, toy.frozen, toy.ids, np.asarray(number))
        require_same_form("what a step returns", carry[0], form)
        losses.append(float(loss))
    return carry[0], losses


def _optimizer(adapted: Adapted, frozen: Frozen) -> optax.GradientTransformation:
    return adapted.optimizer(optax.adam(0.02), frozen)


@functools.partial(quick_jit, static_argnums=0)
def _begin(adapted: Adapted, trainable: Trainable, frozen: Frozen) -> tuple[Any, Any]:
    """The optimiser's state, and the variant's own."""
    state = adapted.init_state(trainable, frozen)
    return _optimizer(adapted, frozen).init(trainable), state


@functools.partial(quick_jit, static_argnums=0, donate_argnums=1)
def _step(
    adapted: Adapted, carry: Any, frozen: Frozen, ids: Array, number: Array
) -> tuple[Any, Array]:
    """One step of training; each step has its own dropout."""
    before, opt_state, state = carry
    key = jax.random.fold_in(toys.hashed_key(13), number)

    @jax.value_and_grad
    def loss(trainable: Trainable) -> Array:
        logits = adapted.apply(trainable, frozen, ids, dropout_key=key)
        return toys.task_loss(logits, ids) + adapted.penalty(trainable, frozen)

    value, grads = loss(before)
    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction needs it
        updates, opt_state = _optimizer(adapted, frozen).update(grads, opt_state, before)
        after: Any = optax.apply_updates(before, updates)
    state, after = adapted.update(state, before, after, grads, number, frozen)
    return (after, opt_state, state), value


OF_TRAINING = (
    learns_by_training,
    the_same_key_gives_the_same_run,
    training_leaves_the_base_alone,
    instances_share_no_state,
    pruning_changes_nothing,
)
