"""What stands for a parameter while a trace is walked through: where its axes are by now."""

import dataclasses
import enum

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Var

from lora_jax.transform import jaxprs
from lora_jax.transform.views import Atom, Axis, View

ADDED = -1
"""The original axis of what has been repeated: none."""


@dataclasses.dataclass(frozen=True)
class Tracked:
    """A parameter on its way through the trace."""

    path: str
    view: View
    cut: frozenset[int] = frozenset()
    """Original axes of which only a range is left."""
    merged: str | None = None
    """The operation that got the merged weight, of which this is the result."""


class Data(enum.Enum):
    """What depends on the inputs of the function, other than random keys: activations."""

    DATA = enum.auto()


DATA = Data.DATA
Operand = Tracked | Data | None
"""None for numbers: what depends on nothing, on random keys, or on parameters out of sight."""


def untracked(var: Var, data: bool) -> Operand:
    """What a value is that no parameter is followed to; what is drawn with a key is noise."""
    dtype = getattr(var.aval, "dtype", None)
    key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    return DATA if data and not key else None


def cut(tracked: Tracked, axis: int, size: int) -> Tracked:
    """The parameter after a slice of one axis, which leaves a matrix whole or cuts it."""
    atoms = tracked.view.axes[axis]
    if size == 1 or not atoms:
        return dataclasses.replace(tracked, view=tracked.view.replace(axis, ()))
    view = tracked.view.replace(axis, (Atom(atoms[0].axis, 1, size),))
    cut = tracked.cut | {atom.axis for atom in atoms}
    return dataclasses.replace(tracked, view=view, cut=cut)


def resized(tracked: Operand, var: Var) -> Operand:
    """The parameter as an array of the same axes in other sizes: a shard, padded, gathered."""
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
