"""What represents a value while a trace is followed: a parameter's axes, data, or neither."""

import dataclasses
import enum

from jax.extend.core import JaxprEqn, Var

from lora_jax.files.arrays import is_key
from lora_jax.transform import jaxprs
from lora_jax.transform.views import Atom, Axis, Parts, View

ADDED = -1
"""Marks an axis made by repetition, which has no original axis."""


@dataclasses.dataclass(frozen=True)
class Tracked:
    """A parameter that is followed through the trace."""

    path: str
    view: View
    cut: frozenset[int] = frozenset()
    """Original axes of which only a range is left."""
    merged: str | None = None
    """The operation that got the merged weight, if this comes from its result."""


class Data(enum.Enum):
    """Marks activations: values that depend on the function's inputs other than random keys."""

    DATA = enum.auto()


DATA = Data.DATA
TraceValue = Tracked | Data | None
"""None for a value that depends on nothing, on random keys, or on parameters not followed."""


def untracked(var: Var, data: bool) -> TraceValue:
    """What represents a value that no parameter is followed to; random keys are not data."""
    return DATA if data and not is_key(var.aval) else None


def cut(tracked: Tracked, axis: int, size: int) -> Tracked:
    """The parameter after a slice of one axis; a range of more than one index counts as a cut."""
    atoms = tracked.view.axes[axis]
    if size == 1 or not atoms:
        return dataclasses.replace(tracked, view=tracked.view.replace(axis, ()))
    view = tracked.view.replace(axis, (Atom(atoms[0].axis, 1, size),))
    cut = tracked.cut | {atom.axis for atom in atoms}
    return dataclasses.replace(tracked, view=view, cut=cut)


def parts(tracked: Tracked, found: Parts) -> list[TraceValue]:
    """The parameter in each window of an `unstack` or `split`, as after a slice of its own."""
    windows = [cut(tracked, found.axis, size) for size in found.sizes]
    if found.kept:
        return list(windows)
    return [dataclasses.replace(each, view=each.view.drop(found.axis)) for each in windows]


def resized(tracked: TraceValue, var: Var) -> TraceValue:
    """The parameter with the same axes in the sizes of `var`: a shard, padded, gathered."""
    sizes = jaxprs.shape(var)
    if not isinstance(tracked, Tracked) or tracked.view.shape == sizes:
        return tracked
    if len(sizes) != len(tracked.view.axes) or any(len(a) != 1 for a in tracked.view.axes):
        return None
    atoms = tracked.view.pick(tuple(range(len(sizes))))
    axes = tuple((Atom(a.axis, a.stride, n),) for a, n in zip(atoms, sizes, strict=True))
    return dataclasses.replace(tracked, view=View(axes))


def repeated(eqn: JaxprEqn, tracked: Tracked) -> Tracked:
    """The merged parameter after a `broadcast_in_dim` that adds axes or repeats along some."""
    axes: list[Axis] = [(Atom(ADDED, 0, size),) if size > 1 else () for size in eqn.params["shape"]]
    for dim, axis in zip(eqn.params["broadcast_dimensions"], tracked.view.axes, strict=True):
        if any(atom.size > 1 for atom in axis):
            axes[dim] = axis
    merged = tracked.merged or eqn.primitive.name
    return dataclasses.replace(tracked, view=View(tuple(axes)), merged=merged)
