"""Clauses about a whole adapted model, a small decoder, and about its training."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lora_jax.contract import toys
from lora_jax.contract.clause import (
    by_numpy,
    clause,
    draws_random_numbers,
    quick_jit,
    require,
    require_close,
    require_identical,
    require_same_form,
)
from lora_jax.contract.toys import Toy, array, base, hashed_key, noisy, score, stack
from lora_jax.partition import flatten
from lora_jax.transform.adapt import Adapted
from lora_jax.transform.placement import Frozen, Trainable
from lora_jax.transform.prune import prune
from lora_jax.variant import Variant

STEPS = 20


@clause
def begins_as_the_base(variant: Variant) -> None:
    """An adapted model gives the base's output at the start, unless the variant says why not."""
    toy = toys.toy(variant)
    if not variant.differs_at_init:
        wanted = toys.output_of(toy.params, toy.ids)
        require_close("the output at the start", toy.output(toy.trainable), wanted)


@clause
def apply_equals_forward_of_merge(variant: Variant) -> None:
    """`apply` is `forward` of `merge`: values, and gradients for exactly what trains."""
    toy = toys.toy(variant)
    both = toy.frozen.base.keys() & toy.trainable["params"].keys()
    require(not both, f"{sorted(both)} are both frozen and trained")
    output, gradient = toy.gradient(toy.moved)
    merged, wanted, through_merge = toy.merged_gradient(toy.moved)
    require_same_form("merge", merged, toy.params)
    require_close("apply", output, wanted)
    require_close("the gradient of apply", gradient, through_merge)
    for path, factors in gradient["adapters"].items():
        for name, each in factors.items():
            require(np.any(each != 0), f"the trainable '{name}' of '{path}' gets no gradient")
    for name, each in gradient.get("shared", {}).get("0", {}).items():
        require(np.any(each != 0), f"the shared trainable '{name}' gets no gradient")


@clause
def stacked_layers_equal_single_ones(variant: Variant) -> None:
    """A scan over stacked layers equals indexing them; each layer has its own random start."""
    toy = toys.toy(variant)
    unrolled = _with_forward(toy, toys.unrolled)
    require_close("a scan over layers", toy.output(toy.moved), unrolled.output(toy.moved))
    if variant.adapts and draws_random_numbers(variant.init, jax.random.key(0), base(variant)):
        path = "layers/up"
        layers = toy.trainable["adapters"][path], toy.frozen.constants[path]
        leaves = map(np.asarray, jax.tree.leaves(layers))
        alike = all(np.array_equal(leaf[0], leaf[1]) for leaf in leaves)
        require(not alike, "the layers of a stack all start with the same random numbers")


@clause
def works_under_jit(variant: Variant) -> None:
    """Compiled, `apply` computes the same as operation by operation."""
    toy = _shallow(variant)
    require_close("apply under jit", quick_jit(toy.apply)(toy.moved), toy.output(toy.moved))


@clause
def works_under_vmap(variant: Variant) -> None:
    """`apply` works under `vmap` over several trainables with one base."""
    toy, many, wanted = _several(variant)
    require_close("apply under vmap", by_numpy(jax.vmap(toy.apply))(many), wanted)


@clause
def works_under_scan(variant: Variant) -> None:
    """`apply` works in a scan over several trainables with one base."""
    toy, many, wanted = _several(variant)
    got = by_numpy(lambda many: lax.map(toy.apply, many))(many)
    require_close("apply under scan", got, wanted)


@clause
def works_under_remat(variant: Variant) -> None:
    """Rematerialised, `apply` has the same gradient."""
    toy = _shallow(variant)
    again = jax.checkpoint(lambda trainable: score(toy.apply(trainable)))
    got = by_numpy(jax.grad(again))(toy.moved)
    require_close("the gradient under remat", got, toy.gradient(toy.moved)[1])


@clause
def works_on_a_mesh(variant: Variant) -> None:
    """Gradients are the same with weights, factors and examples sharded over all devices."""
    toy = _with_forward(toys.toy(variant, targets=toys.SOME), toys.thin)
    devices = np.array(jax.devices())
    mesh = Mesh(devices.reshape(-1, 2 if len(devices) % 2 == 0 else 1), ("data", "model"))

    def spread(leaf: Array, name: str, axes: range) -> Array:
        """Shard the last of the axes that divides evenly."""
        even = [axis for axis in axes if leaf.shape[axis] % mesh.shape[name] == 0]
        spec = [name if axis == max(even, default=-1) else None for axis in range(leaf.ndim)]
        # From NumPy, as JAX would compile a program that cuts an array up.
        return jax.device_put(np.asarray(leaf), NamedSharding(mesh, PartitionSpec(*spec)))

    moved, frozen = jax.tree.map(
        lambda leaf: spread(leaf, "model", range(leaf.ndim)), (toy.moved, toy.frozen)
    )
    sharded = dataclasses.replace(toy, frozen=frozen, ids=spread(toy.ids, "data", range(1)))
    got, wanted = sharded.compiled_gradient(moved), toy.gradient(toy.moved)
    require_close(f"the gradient on {len(devices)} devices", got, wanted)


@clause
def survives_a_file(variant: Variant) -> None:
    """Trainables and constants are plain arrays, the same bit by bit after a safetensors file.

    All else is static and the same for every key, so that a restored adapter fits.
    """
    toy, other = toys.toy(variant), toys.toy(variant, seed=12)
    require(other.frozen.spec == toy.frozen.spec, "the static part of `frozen` depends on the key")
    require(hash(other.frozen.spec) == hash(toy.frozen.spec), "equal specs have different hashes")

    saved = toy.moved, toy.frozen.constants, toy.frozen.shared
    leaves, _ = flatten(saved)
    for path, leaf in leaves.items():
        plain = not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
        require(plain, f"'{path}' is not a plain array, but {leaf.dtype}")
    file = safetensors.numpy.save({path: np.asarray(leaf) for path, leaf in leaves.items()})
    loaded = safetensors.numpy.load(file)
    _, treedef = flatten((other.trainable, other.frozen.constants, other.frozen.shared))
    restored = treedef.unflatten([array(loaded[path]) for path in leaves])
    require_identical("what was loaded", restored, saved)
    trainable, constants, shared = restored
    frozen = dataclasses.replace(other.frozen, constants=constants, shared=shared)
    got = dataclasses.replace(other, frozen=frozen).output(trainable)
    require_identical("the output of what was loaded", got, toy.output(toy.moved))


@clause
def narrow_models_stay_narrow(variant: Variant) -> None:
    """A bfloat16 model gives bfloat16 and merges to bfloat16, though its factors are float32."""
    toy = toys.toy(variant, dtype=jnp.bfloat16, targets=toys.SOME)
    for seed in range(3):
        # With larger moves, attention is all or nothing, and even correct rounding can flip it.
        moved = noisy(toy.trainable, seed, 0.1)
        merged, wanted = toy.merged(moved)
        require_same_form("merge", merged, toy.params)
        got = toy.output(moved)
        require_same_form("the output", got, wanted)
        got, wanted = (np.asarray(each, np.float32) for each in (got, wanted))
        require_close("apply in bfloat16", got, wanted, 0.03)


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
def is_causal_and_batch_invariant(variant: Variant) -> None:
    """Outputs depend on no later token, and on no other example."""
    toy = toys.toy(variant)
    later, others = np.array(toy.ids), np.array(toy.ids)
    for ids, part in ((later, np.s_[:, -1]), (others, np.s_[1:])):
        ids[part] = (ids[part] + 1) % len(toy.params["embed"])

    def output(ids: np.ndarray) -> np.ndarray:
        return np.asarray(dataclasses.replace(toy, ids=array(ids)).output(toy.moved))

    logits, last = output(np.asarray(toy.ids)), output(later)
    require(np.any(last[:, -1] != logits[:, -1]), "the last token does not change its own output")
    require_close("what comes before a changed token", last[:, :-1], logits[:, :-1], 1e-12)
    require_close("an example beside changed ones", output(others)[0], logits[0], 1e-12)
    require_close("an example alone", output(np.asarray(toy.ids)[:1])[0], logits[0], 1e-12)


def _with_forward(toy: Toy, forward: Callable[..., Array]) -> Toy:
    return dataclasses.replace(toy, adapted=dataclasses.replace(toy.adapted, forward=forward))


def _shallow(variant: Variant) -> Toy:
    """A toy of few operations, with only the adapters of weights that these use."""
    toy = _with_forward(toys.toy(variant), toys.shallow)
    spec = toy.frozen.spec
    used = tuple(each for each in spec.placements if not each.use.path.startswith("layers/"))
    frozen = dataclasses.replace(toy.frozen, spec=dataclasses.replace(spec, placements=used))
    return dataclasses.replace(toy, frozen=frozen)


def _several(variant: Variant) -> tuple[Toy, Trainable, Array]:
    """A toy, three random trainables stacked, and the output of each."""
    toy = _shallow(variant)
    each = [noisy(toy.trainable, seed) for seed in range(3)]
    return toy, stack(*each), stack(*map(toy.output, each))


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
    disabling_gives_back_the_base,
    is_causal_and_batch_invariant,
)


# -- training --------------------------------------------------------------------------------------


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
    key = jax.random.fold_in(hashed_key(13), number)

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
