"""What adapters do to an optimiser: its gradients before it, its rates after it, its precision."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax import GradientTransformation

from lora_jax.transform.adapted_weight import over_stack, with_shared
from lora_jax.transform.placement import (
    Frozen,
    Placement,
    Trainable,
    group_of,
    grouped,
    split_shared,
)
from lora_jax.variant import Factors


class Axes(NamedTuple):
    """The input and output axes of an array's matrices; all other axes belong to the stack."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


AxesOf = Callable[[tuple[Any, ...], Any], Axes | None]
"""From the keys and the array of a trainable's leaf to its axes; None if it holds no matrices."""


def axes_of_matrices(frozen: Frozen) -> AxesOf:
    """Find the matrices among trainables.

    A weight that trains in full is one if activations are multiplied by it, except a table and a
    head over a table's rows. A factor is one if it has two axes besides those of the stack.
    """
    full = {use.path: use for use in frozen.spec.full}
    stacks = {each.use.path: len(each.use.stack) for each in frozen.spec.adapted}

    def axes(keys: tuple[Any, ...], leaf: Any) -> Axes | None:
        part, path = (jax.tree_util.keystr((key,), simple=True) for key in keys[:2])
        if part == "params":
            use = full.get(path)
            return Axes(use.inputs, use.outputs) if use and use.is_linear else None
        # Arrays that matrices share are not stacked, whatever weight has their number for a path.
        depth = stacks.get(path, 0) if part == "adapters" else 0
        return Axes((-2,), (-1,)) if leaf.ndim - depth == 2 else None

    return axes


Rates = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class ForWeights:
    """An optimiser that is made only when the weights are known.

    `make(axes, rates)` gives it. `axes` finds the matrices among the trainables. `rates` multiplies
    updates by the learning rates that variants give their factors. It is not put after the
    optimiser, which applies it itself where it steps: schedule-free averages its steps.
    """

    make: Callable[[AxesOf, GradientTransformation], GradientTransformation]


def at_own_rates(tx: GradientTransformation | ForWeights, frozen: Frozen) -> GradientTransformation:
    """`tx`, and after it the learning rates that variants give their factors, if any does."""
    rates: dict[str, dict[str, Any]] = {}
    shared: dict[str, dict[str, Any]] = {}
    nothing: Trainable = {"adapters": {path: {} for path in frozen.constants}}
    for number, (variant, factors) in enumerate(grouped(nothing, frozen)):
        constants = {path: each.constants for path, each in factors.items()}
        own, shared[str(number)] = split_shared(variant, variant.learning_rates(constants))
        for name, rate in shared[str(number)].items():
            if jnp.ndim(rate):
                raise ValueError(
                    f"the learning rate of '{name}', which matrices share, must be one number, and "
                    f"has the shape {jnp.shape(rate)}"
                )
        rates |= own
    some = rates or any(shared.values())
    scaling = scale_updates(rates, shared) if some else optax.identity()
    if isinstance(tx, ForWeights):
        return tx.make(axes_of_matrices(frozen), scaling)
    return optax.chain(tx, scaling) if some else tx


def scale_updates(rates: Rates, shared: Rates = MappingProxyType({})) -> GradientTransformation:
    """Multiply the updates of the factors named in `rates`, {path: {name: ratio}}.

    Args:
      shared: the same for arrays that a variant's matrices share, by the variant's number.
    """

    def scale(mine: Mapping[str, Any], factors: dict[str, Array]) -> dict[str, Array]:
        return {n: u * _expand(mine[n], u) if n in mine else u for n, u in factors.items()}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        parts = {"adapters": rates, "shared": shared}
        scaled = {
            part: {where: scale(each.get(where, {}), x) for where, x in updates[part].items()}
            for part, each in parts.items()
            if part in updates
        }
        return {**updates, **scaled}, state

    return GradientTransformation(lambda params: optax.EmptyState(), update)


def _expand(rate: Any, update: Array) -> Array:
    """Reshape a rate (one for each matrix of a stack) so that it can multiply an update."""
    rate = jnp.asarray(rate, update.dtype)
    return rate.reshape(rate.shape + (1,) * (update.ndim - rate.ndim))


def preconditioned(
    tx: optax.GradientTransformation, frozen: Frozen
) -> optax.GradientTransformation:
    """`tx` on the gradients that variants make of those of their factors (`Variant.precondition`).

    Its state is that of `tx`; it is `tx` if no variant changes anything. `update` raises a
    `ValueError` if the trainables are not given as `params`.
    """
    chosen = [each for each in frozen.spec.adapted if group_of(each).preconditions]
    if not chosen:
        return tx
    inner = optax.with_extra_args_support(tx)

    def changed(placement: Placement, grads: Any, params: Trainable) -> dict[str, Array]:
        path, variant = placement.use.path, group_of(placement)
        shared = frozen.shared_by(params)[placement.variant]

        def of_a_matrix(gradients: dict[str, Array], factors: Factors) -> dict[str, Array]:
            return variant.precondition(gradients, with_shared(factors, shared))

        factors = Factors(params["adapters"][path], frozen.constants[path])
        of_a_stack = over_stack(of_a_matrix, len(placement.use.stack))
        return of_a_stack(grads["adapters"][path], factors)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("variants change gradients here: call update(grads, state, trainable)")
        adapters = {each.use.path: changed(each, updates, params) for each in chosen}
        updates = {**updates, "adapters": {**updates["adapters"], **adapters}}
        return inner.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def with_own_state(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx`, whose `update` says so if its state is of another optimiser or other trainables."""
    inner = optax.with_extra_args_support(tx)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        try:
            return inner.update(updates, state, params, **extra)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            like = updates if params is None else params
            if _form(jax.eval_shape(tx.init, like)) == _form(state):
                raise
            raise ValueError(
                "opt_state belongs to another optimiser or other trainables: make it with "
                "TrainState.create, or adapted.optimizer(tx, frozen).init(trainable)"
            ) from error

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _form(tree: Any) -> tuple[Any, list[tuple[int, ...]]]:
    """The structure of a tree, and the shapes of its leaves."""
    return jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]


class MasterState(NamedTuple):
    """The state of an optimiser, and what its steps add up to before it is rounded."""

    inner: Any
    masters: Trainable
    """Of the trainables, those in bfloat16, in float32."""


def with_master_weights(
    tx: optax.GradientTransformation, frozen: Frozen
) -> optax.GradientTransformation:
    """`tx` on float32 copies of bfloat16 parameters, which become the roundings of these copies.

    A bfloat16 number has 8 significant bits: a step below 1/512 of it would be lost, and as a
    moment of Adam it would not decay by 0.999 (Micikevicius et al. 2018, arXiv 1710.03740, section
    3.1). It is `tx` if no parameter that trains in full is in bfloat16; factors of adapters never
    are. Updates are in bfloat16, too, for `optax.apply_updates`. So a parameter that a step more
    than halves or doubles may miss its rounding, by 1/256 of the step, and goes on from where it
    is.
    """
    narrow = [use.path for use in frozen.spec.full if use.dtype == jnp.bfloat16]
    if not narrow:
        return tx
    inner = optax.with_extra_args_support(tx)

    def init(params: Any) -> MasterState:
        masters = {path: params["params"][path].astype(jnp.float32) for path in narrow}
        return MasterState(inner.init(_with(params, masters)), {"params": masters})

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("parameters are rounded here: call update(grads, state, trainable)")
        exact = at_masters(state, params)
        updates = jax.tree.map(lambda x, like: x.astype(like.dtype), updates, exact)
        steps: Any
        steps, new = inner.update(updates, state.inner, exact, **extra)
        moved = {path: exact["params"][path] + steps["params"][path] for path in narrow}
        rounded = {path: _to(x, params["params"][path]) for path, x in moved.items()}
        return _with(steps, rounded), MasterState(new, {"params": moved})

    return optax.GradientTransformationExtraArgs(init, update)


def at_masters(state: MasterState, trainable: Trainable) -> Trainable:
    """The trainables in float32; one that is not its master's rounding, as it was set, as it is."""

    def one(master: Array, x: Array) -> Array:
        now = x.astype(master.dtype)
        return jnp.where(_rounded(master) == now, master, now)

    masters = state.masters["params"].items()
    return _with(trainable, {path: one(x, trainable["params"][path]) for path, x in masters})


def _to(master: Array, x: Array) -> Array:
    """What `optax.apply_updates` adds to `x`, in its dtype, to make it the master's rounding."""
    return (_rounded(master) - x.astype(master.dtype)).astype(x.dtype)


def _rounded(x: Array) -> Array:
    """`x` rounded to bfloat16. XLA may leave out a cast there and back, and not this."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _with(tree: Any, params: Mapping[str, Array]) -> Any:
    return {**tree, "params": {**tree["params"], **params}}
