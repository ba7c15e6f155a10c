"""Clauses about a whole adapted model: a small decoder with all its matrices adapted."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lora_jax.adapt import Adapted
from lora_jax.contract import toys
from lora_jax.contract.clause import (
    clause,
    compiled,
    draws_random_numbers,
    require,
    require_close,
    require_identical,
    require_same_form,
)
from lora_jax.contract.toys import Toy, decoder, score
from lora_jax.frozen import Frozen, Trainable
from lora_jax.partition import flatten, unflatten
from lora_jax.variant import Variant

STEPS = 20

_decoder = compiled(decoder)


@clause
def begins_as_the_base(variant: Variant) -> None:
    """An adapted model gives the base's output at the start, unless the variant says why not."""
    toy = toys.toy(variant)
    if not variant.differs_at_init:
        wanted = _decoder(toy.params, toy.ids)
        require_close("the output at the start", toy.output(toy.trainable), wanted)


@clause
def apply_equals_forward_of_merge(variant: Variant) -> None:
    """`apply` is `forward` of `merge`: values, and gradients for exactly what trains."""
    toy = toys.toy(variant)
    both = toy.frozen.base.keys() & toy.trainable["params"].keys()
    require(not both, f"{sorted(both)} are both frozen and trained")
    merged = toy.adapted.merge(toy.moved, toy.frozen)
    require_same_form("merge", merged, toy.params)
    require_close("apply", toy.output(toy.moved), _decoder(merged, toy.ids))

    @jax.value_and_grad
    def through_merge(trainable: Trainable) -> Array:
        return score(decoder(toy.adapted.merge(trainable, toy.frozen), toy.ids))

    got = toy.gradient(toy.moved)
    require_close("the gradient of apply", got, compiled(through_merge)(toy.moved))
    for path, factors in got[1]["adapters"].items():
        for name, gradient in factors.items():
            require(jnp.any(gradient != 0), f"the trainable '{name}' of '{path}' gets no gradient")


@clause
def stacked_layers_equal_single_ones(variant: Variant) -> None:
    """A scan over stacked layers computes what indexing them does; each layer starts on its own."""
    toy = toys.toy(variant)
    unrolled = dataclasses.replace(
        toy, adapted=dataclasses.replace(toy.adapted, forward=toys.unrolled)
    )
    require_close("a scan over layers", toy.output(toy.moved), unrolled.output(toy.moved))
    if variant.adapts and draws_random_numbers(variant.init, jax.random.key(0), toys.base(variant)):
        path = "layers/up"
        layers = toy.trainable["adapters"][path], toy.frozen.constants[path]
        alike = all((leaf[0] == leaf[1]).all() for leaf in jax.tree.leaves(layers))
        require(not alike, "the layers of a stack all start with the same random numbers")


@clause
def works_under_jit(variant: Variant) -> None:
    """Compiled, `apply` computes what it does operation by operation."""
    toy = toys.toy(variant)
    require_close("apply under jit", toy.output(toy.moved), toy.apply(toy.moved))


@clause
def works_under_vmap(variant: Variant) -> None:
    """Over several trainables beside one base."""
    toy, many, wanted = _several(variant)
    require_close("apply under vmap", compiled(jax.vmap(toy.apply))(many), wanted)


@clause
def works_under_scan(variant: Variant) -> None:
    """Over several trainables beside one base."""
    toy, many, wanted = _several(variant)
    got = lax.scan(lambda carry, each: (carry, toy.apply(each)), None, many)[1]
    require_close("apply under scan", got, wanted)


@clause
def works_under_remat(variant: Variant) -> None:
    """Rematerialised, `apply` has the same gradient."""
    toy = toys.toy(variant)
    again = jax.checkpoint(lambda trainable: score(toy.apply(trainable)))
    got = compiled(jax.value_and_grad(again))(toy.moved)
    require_close("the gradient under remat", got, toy.gradient(toy.moved))


@clause
def works_on_a_mesh(variant: Variant) -> None:
    """Weights, factors and examples sharded over all devices that there are."""
    toy = toys.toy(variant)
    devices = np.array(jax.devices())
    mesh = Mesh(devices.reshape(-1, 2 if len(devices) % 2 == 0 else 1), ("data", "model"))

    def spread(leaf: Array, name: str, axes: range) -> Array:
        """Shard the last of the axes that divides evenly."""
        even = [axis for axis in axes if leaf.shape[axis] % mesh.shape[name] == 0]
        spec = [name if axis == max(even, default=-1) else None for axis in range(leaf.ndim)]
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

    def on_all(leaf: Array) -> Array:
        return spread(leaf, "model", range(leaf.ndim))

    moved, frozen = jax.tree.map(on_all, (toy.moved, toy.frozen))
    sharded = dataclasses.replace(toy, frozen=frozen, ids=spread(toy.ids, "data", range(1)))
    wanted = toy.gradient(toy.moved)
    require_close(f"the gradient on {len(devices)} devices", sharded.gradient(moved), wanted)


@clause
def survives_a_file(variant: Variant) -> None:
    """What trains and what is constant are plain arrays: through safetensors and back, bit by bit.

    All else is static and the same whatever the key, so that a restored adapter fits.
    """
    toy, other = toys.toy(variant), toys.toy(variant, seed=12)
    require(other.frozen.spec == toy.frozen.spec, "the static part of `frozen` depends on the key")
    require(hash(other.frozen.spec) == hash(toy.frozen.spec), "equal specs have different hashes")

    saved = toy.moved, toy.frozen.constants, toy.frozen.shared
    leaves, _ = flatten(saved)
    for path, leaf in leaves.items():
        plain = not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
        require(plain, f"'{path}' is no plain array, but {leaf.dtype}")
    file = safetensors.numpy.save({path: np.asarray(leaf) for path, leaf in leaves.items()})
    loaded = safetensors.numpy.load(file)
    _, treedef = flatten((other.trainable, other.frozen.constants, other.frozen.shared))
    restored = unflatten(treedef, {path: jnp.asarray(loaded[path]) for path in leaves})
    require_identical("what was loaded", restored, saved)
    trainable, constants, shared = restored
    frozen = dataclasses.replace(other.frozen, constants=constants, shared=shared)
    got = dataclasses.replace(other, frozen=frozen).output(trainable)
    require_identical("the output of what was loaded", got, toy.output(toy.moved))


@clause
def narrow_models_stay_narrow(variant: Variant) -> None:
    """A bfloat16 model gives bfloat16 and merges to bfloat16, though its factors are float32."""
    toy = toys.toy(variant, jnp.bfloat16)
    merged = toy.adapted.merge(toy.moved, toy.frozen)
    require_same_form("merge", merged, toy.params)
    got, wanted = toy.output(toy.moved), _decoder(merged, toy.ids)
    require_same_form("the output", got, wanted)
    got, wanted = got.astype(jnp.float32), wanted.astype(jnp.float32)
    require_close("apply in bfloat16", got, wanted, 0.1)


@clause
def learns_by_training(variant: Variant) -> None:
    """A toy loss falls in 20 steps of the variant's own optimiser, penalty and update."""
    losses = _train(toys.training_toy(variant, ("embed", "mix/kernel", "layers/.*")), STEPS)[1]
    require(np.all(np.isfinite(losses)), f"the losses of the toy are {losses}")
    fallen = f"from {losses[0]:.4f} to {losses[-1]:.4f} in {STEPS} steps"
    require(losses[-1] < 0.99 * losses[0], f"the toy loss goes {fallen} (expected: down by 1%)")


@clause
def the_same_key_gives_the_same_run(variant: Variant) -> None:
    """Bit by bit, dropout included."""
    first, again = (_train(toys.training_toy(variant, ("mix/kernel",)), 3) for _ in range(2))
    require_identical("a second run", again, first)


@clause
def training_leaves_the_base_alone(variant: Variant) -> None:
    """Nothing frozen changes by a bit, and donating what trains deletes none of the user's arrays.

    So the base model is there exactly as it was, whenever the adapters are left out.
    """
    toy = toys.training_toy(variant, ("mix/kernel",))
    theirs = toy.params, toy.frozen
    before = jax.tree.map(np.array, theirs)
    _train(toy, 3)
    deleted = sum(leaf.is_deleted() for leaf in jax.tree.leaves(theirs))
    require(not deleted, f"training deleted {deleted} arrays that it does not own")
    require_identical("a frozen array", theirs, before)


@clause
def disabling_gives_back_the_base(variant: Variant) -> None:
    """Without its adapters a trained model is the base again, bit by bit."""
    toy = toys.toy(variant)
    params = toy.adapted.disable(toy.moved, toy.frozen)
    wanted = dict(flatten(toy.params)[0])
    got = flatten(params)[0]
    require(got.keys() == wanted.keys(), "disable gives another tree")
    for path in toy.frozen.base:
        require_identical(f"'{path}' after disable", got[path], wanted[path])


@clause
def instances_share_no_state(variant: Variant) -> None:
    """What one adapted model does to itself in training changes nothing for another."""
    alone, _ = _train(toys.training_toy(variant, ("mix/kernel",)), 2)
    twin = dataclasses.replace(variant)
    first, second = (toys.training_toy(each, ("mix/kernel",)) for each in (variant, twin))
    _train(second, 1)
    require_identical("training beside another instance", _train(first, 2)[0], alone)


@clause
def is_causal_and_batch_invariant(variant: Variant) -> None:
    """Outputs depend on no later token, and on no other example."""
    toy = toys.toy(variant)
    other = (toy.ids + 1) % len(toy.params["embed"])
    logits = toy.output(toy.moved)
    last = toy.output(toy.moved, toy.ids.at[:, -1].set(other[:, -1]))
    require(jnp.any(last[:, -1] != logits[:, -1]), "the last token does not change its own output")
    require_close("what comes before a changed token", last[:, :-1], logits[:, :-1], 1e-12)
    beside = toy.output(toy.moved, toy.ids.at[1:].set(other[1:]))
    require_close("an example beside changed ones", beside[0], logits[0], 1e-12)
    require_close("an example alone", toy.output(toy.moved, toy.ids[:1])[0], logits[0], 1e-12)


def _several(variant: Variant) -> tuple[Toy, Trainable, Array]:
    """A toy, three random trainables stacked, and the output of each."""
    toy = toys.toy(variant)
    each = [toys.noisy(toy.trainable, seed) for seed in range(3)]
    wanted = jnp.stack([toy.output(trainable) for trainable in each])
    return toy, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each), wanted


def _train(toy: Toy, steps: int) -> tuple[Trainable, list[float]]:
    """What training ends with, and the loss at each step; the toy's trainables are donated."""
    tx = _optimizer(toy.adapted, toy.frozen)
    state = toy.adapted.init_state(toy.trainable, toy.frozen)
    carry = toy.trainable, tx.init(toy.trainable), state
    form = jax.eval_shape(lambda: toy.trainable)
    losses = []
    for number in range(steps):
        carry, loss = _step(toy.adapted, carry, toy.frozen, toy.ids, jnp.asarray(number))
        require_same_form("what a step returns", carry[0], form)
        losses.append(float(loss))
    return carry[0], losses


def _optimizer(adapted: Adapted, frozen: Frozen) -> optax.GradientTransformation:
    return adapted.optimizer(optax.adam(0.02), frozen)


@functools.partial(compiled, static_argnums=0, donate_argnums=1)
def _step(
    adapted: Adapted, carry: Any, frozen: Frozen, ids: Array, number: Array
) -> tuple[Any, Array]:
    """One step of training, each with its own dropout."""
    before, opt_state, state = carry
    key = jax.random.fold_in(jax.random.key(13), number)

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


OF_A_MODEL = (
    begins_as_the_base,
    apply_equals_forward_of_merge,
    stacked_layers_equal_single_ones,
    works_under_jit,
    works_under_vmap,
    works_under_scan,
    works_under_remat,
    works_on_a_mesh,
    survives_a_file,
    narrow_models_stay_narrow,
    learns_by_training,
    the_same_key_gives_the_same_run,
    training_leaves_the_base_alone,
    disabling_gives_back_the_base,
    instances_share_no_state,
    is_causal_and_batch_invariant,
)
