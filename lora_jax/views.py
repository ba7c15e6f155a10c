"""Where the axes of a weight go while a program transposes, reshapes and slices it.

A model stores a weight in one shape and uses it in another: heads apart, transposed, one layer of a
stack. A `View` follows the original axes through such operations, so that the matrix inside can
still be multiplied by when the program reaches its product.
"""

import dataclasses
import math
from typing import NamedTuple

from jax.extend.core import JaxprEqn

from lora_jax import jaxprs


class Atom(NamedTuple):
    """A part of one original axis: index `i` of the axis is `sum(index(atom) * atom.stride)`."""

    axis: int
    stride: int
    size: int


Axis = tuple[Atom, ...]  # one axis of a view, row-major over its atoms; empty means size one


@dataclasses.dataclass(frozen=True)
class View:
    """How the axes of an array are made of the atoms of the weight that it came from."""

    axes: tuple[Axis, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> "View":
        return cls(tuple((Atom(axis, 1, size),) for axis, size in enumerate(shape)))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(atom.size for atom in axis) for axis in self.axes)

    @property
    def atoms(self) -> tuple[Atom, ...]:
        return tuple(atom for axis in self.axes for atom in axis)

    def pick(self, dims: tuple[int, ...]) -> tuple[Atom, ...]:
        """The atoms of some axes, in the order of `dims`."""
        return tuple(atom for dim in dims for atom in self.axes[dim])

    def replace(self, dim: int, axis: Axis) -> "View":
        return View((*self.axes[:dim], axis, *self.axes[dim + 1 :]))

    def drop(self, dim: int) -> "View":
        return View((*self.axes[:dim], *self.axes[dim + 1 :]))

    def transpose(self, permutation: tuple[int, ...]) -> "View":
        return View(tuple(self.axes[dim] for dim in permutation))

    def reshape(self, shape: tuple[int, ...]) -> "View | None":
        """The view in another shape, atoms split where a new axis ends inside one.

        Returns None where an axis would end inside an atom that does not divide evenly.
        """
        if 0 in shape:
            return None
        pending = list(reversed(self.atoms))
        axes: list[list[Atom]] = []
        for size in shape:
            axis: list[Atom] = []
            missing = size
            while pending and (missing > 1 or (size == 1 and not axis and pending[-1].size == 1)):
                atom = pending.pop()
                if missing % atom.size:  # the axis ends inside this atom
                    inner, remainder = divmod(atom.size, missing)
                    if remainder:
                        return None
                    pending.append(Atom(atom.axis, atom.stride, inner))
                    atom = Atom(atom.axis, atom.stride * inner, missing)
                axis.append(atom)
                missing //= atom.size
            axes.append(axis)
        if pending:  # left-over atoms of size one belong anywhere
            if not axes:
                return None
            axes[-1].extend(reversed(pending))
        return View(tuple(map(tuple, axes)))


def canonical(atoms: tuple[Atom, ...]) -> tuple[Atom, ...]:
    """The atoms in the order of the original array."""
    return tuple(sorted(atoms, key=lambda atom: (atom.axis, -atom.stride)))


def follow(eqn: JaxprEqn, view: View) -> View | None:
    """The view after an operation that only rearranges axes, or None where it does more."""
    params = eqn.params
    match eqn.primitive.name:
        case "copy" | "copy_p":
            return view
        case "transpose":
            return view.transpose(params["permutation"])
        case "reshape" if params["dimensions"] is None:
            return view.reshape(params["new_sizes"])
        case "squeeze":
            gone = params["dimensions"]
            return view.reshape(tuple(n for d, n in enumerate(view.shape) if d not in gone))
        case "expand_dims":
            return view.reshape(eqn.outvars[0].aval.shape)  # type: ignore[attr-defined]
        case "broadcast_in_dim":
            kept = tuple(params["shape"][dim] for dim in params["broadcast_dimensions"])
            if kept == view.shape and math.prod(params["shape"]) == math.prod(kept):
                return view.reshape(params["shape"])
    return None


def sliced_axis(eqn: JaxprEqn, shape: tuple[int, ...]) -> int | None:
    """The only axis that a `slice` or `dynamic_slice` shortens, or None for none or several."""
    if eqn.primitive.name == "slice":
        sizes = jaxprs.shape(eqn.outvars[0])
    elif eqn.primitive.name == "dynamic_slice":
        sizes = eqn.params["slice_sizes"]
    else:
        return None
    cut = [dim for dim, (old, new) in enumerate(zip(shape, sizes, strict=True)) if old != new]
    return cut[0] if len(cut) == 1 else None


def looked_up_axis(eqn: JaxprEqn, shape: tuple[int, ...]) -> int | None:
    """The axis along which a `gather` takes whole rows (`table[ids]`), or None for another kind."""
    if eqn.primitive.name != "gather":
        return None
    numbers = eqn.params["dimension_numbers"]
    if len(numbers.start_index_map) != 1 or numbers.operand_batching_dims:
        return None
    axis = numbers.start_index_map[0]
    rows = tuple(1 if dim == axis else size for dim, size in enumerate(shape))
    whole = eqn.params["slice_sizes"] == rows and numbers.collapsed_slice_dims == (axis,)
    return axis if whole else None
