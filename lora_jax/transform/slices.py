"""Adapted weights of which a program takes a part: a fused projection, the gates of a recurrence.

A low-rank update of a matrix, cut along its inputs or its outputs, is the update by A or by B cut
in the same way. So a part of a weight goes on as a weight, and nothing is merged.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

from jax import Array, lax
from jax.extend.core import JaxprEqn

from lora_jax.methods.lowrank import LowRankUpdate
from lora_jax.methods.products import times
from lora_jax.transform import views
from lora_jax.transform.adapted_weight import Shared, Weight, over_stack, with_shared
from lora_jax.transform.views import Atom, Axis, arrange, canonical
from lora_jax.variant import Base, Factors

Take = Callable[[Array, int], Array]
"""From an array and one of its axes to the part of it along this axis."""


@dataclasses.dataclass(frozen=True)
class Part(LowRankUpdate):
    """W' = (W + A^T B) g for a part W of a weight; without g where nothing is rescaled."""

    def low_rank_factors(self, factors: Factors, dtype: Any) -> tuple[Array, Array]:
        return factors.trainable["a"].astype(dtype), factors.trainable["b"].astype(dtype)

    def as_rescaled_lora(
        self, base: Base, factors: Factors
    ) -> tuple[Array, Array, Array | None] | None:
        return factors.trainable["a"], factors.trainable["b"], factors.trainable.get("gain")

    def weight(self, base: Base, factors: Factors) -> Array:
        return _rescaled(super().weight(base, factors), factors)

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        return _rescaled(super().dot(x, base, factors, dropout_key=dropout_key), factors)

    def dot_t(self, x: Array, base: Base, factors: Factors) -> Array:
        return super().dot_t(_rescaled(x, factors), base, factors)

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        return _rescaled(super().take(rows, base, factors), factors)


def _rescaled(y: Array, factors: Factors) -> Array:
    gain = factors.trainable.get("gain")
    return y if gain is None else times(y, gain)


def follow(weight: Weight, eqn: JaxprEqn, operands: list[Any], shared: Shared) -> Weight | None:
    """The part of a weight that a `slice` takes of its matrix; None if that has to be merged."""
    axes = views.sliced_axes(eqn, weight.view.shape)
    if axes is None:
        return None
    params, part = eqn.params, weight
    for axis in axes:
        if eqn.primitive.name == "dynamic_slice":
            start, size = operands[1 + axis], params["slice_sizes"][axis]
            cut = _cut(part, shared, axis, lambda x, at, i=start, n=size: _window(x, i, n, at))
        else:
            first, last = params["start_indices"][axis], params["limit_indices"][axis]
            step = params["strides"][axis] if params["strides"] else 1
            cut = _cut(part, shared, axis, _range(first, last, step))
        if cut is None:
            return None
        part, shared = cut, Factors({}, {})
    return part


def parts(weight: Weight, eqn: JaxprEqn, shared: Shared) -> list[Weight] | None:
    """The parts of a weight that a `split` or `unstack` takes of its matrix, or None."""
    found = views.as_parts(eqn, weight.view.shape)
    if found is None:
        return None
    ends = itertools.accumulate(found.sizes, initial=0)
    cut = [
        _cut(weight, shared, found.axis, _range(first, last, 1))
        for first, last in itertools.pairwise(ends)
    ]
    if found.kept or None in cut:
        return None if None in cut else cut  # type: ignore[return-value]
    return [dataclasses.replace(each, view=each.view.drop(found.axis)) for each in cut if each]


def _range(first: int, last: int, step: int) -> Take:
    return lambda x, axis: lax.slice_in_dim(x, first, last, step, axis)


def _window(x: Array, start: Array, size: int, axis: int) -> Array:
    return lax.dynamic_slice_in_dim(x, start, size, axis, allow_negative_indices=False)


def _cut(weight: Weight, shared: Shared, axis: int, take: Take) -> Weight | None:
    """The part of a weight along one axis of its view, which is of inputs or of outputs alone."""
    view, depth = weight.view, len(weight.stack)
    sides = [_side(weight, axes) for axes in view.axes]
    if "mixed" in sides or sides[axis] not in ("in", "out"):
        return None

    def low_rank(base: Base, factors: Factors) -> Any:
        return weight.variant.as_rescaled_lora(base, with_shared(factors, shared))

    found = over_stack(low_rank, depth)(weight.base, weight.factors)
    if found is None:
        return None
    matrix = over_stack(lambda base: base.dense(), depth)(weight.base)
    matrix = arrange(matrix, (*weight.stack, *weight.in_atoms, *weight.out_atoms), view.axes)
    matrix = take(matrix, axis)
    first, size = view.axes[axis][0], matrix.shape[axis]
    atoms: Axis = (Atom(first.axis, first.stride, size),) if size > 1 else ()
    new = view.replace(axis, atoms)

    def rows(array: Array, side: str, keep: int) -> Array:
        """A factor, whose last axis is of the inputs or of the outputs, cut if the axis is."""
        dims = [dim for dim, each in enumerate(sides) if each == side]
        if axis not in dims:
            return array
        before = weight.in_atoms if side == "in" else weight.out_atoms
        apart = arrange(array, before, tuple(view.axes[dim] for dim in dims), keep=keep)
        apart = take(apart, keep + dims.index(axis))
        after = tuple(atom for dim in dims for atom in new.axes[dim])
        return arrange(apart, after, (canonical(after),), keep=keep)

    a, b, gain = found
    trained = {"a": rows(a, "in", depth + 1), "b": rows(b, "out", depth + 1)}
    if gain is not None:
        trained["gain"] = rows(gain, "out", depth)
    kept = {name: x for name, x in weight.factors.constants.items() if name == "keep"}
    part = dataclasses.replace(
        weight, variant=Part(), factors=Factors(trained, kept), view=new, base=weight.base
    )
    ends = (*((atom,) for atom in weight.stack), part.in_atoms, part.out_atoms)
    return dataclasses.replace(part, base=Base(arrange(matrix, new.atoms, ends), "io"))


def _side(weight: Weight, atoms: Axis) -> str:
    """What an axis of the view indexes: `in`, `out`, `stack`, `none` (of size one) or `mixed`."""
    kinds = {
        "stack" if atom in weight.stack else "in" if atom.axis in weight.inputs else "out"
        for atom in atoms
    }
    return "mixed" if len(kinds) > 1 else next(iter(kinds), "none")
