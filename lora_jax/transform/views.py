"""Where the axes of a weight go while a program transposes, reshapes and slices it.

A model stores a weight in one shape and uses it in another: heads apart, transposed, one layer of a
stack. A `View` follows the original axes through such operations, so that the program can still
multiply by the matrix when it reaches the product.
"""

import dataclasses
import math
from typing import Any, NamedTuple

from jax import Array
from jax.extend.core import JaxprEqn

from lora_jax.transform import jaxprs


class Atom(NamedTuple):
    """A part of one original axis: index `i` of the axis is `sum(index(atom) * atom.stride)`."""

    axis: int
    stride: int
    size: int


Axis = tuple[Atom, ...]  # one axis of a view, row-major over its atoms; empty means size one


@dataclasses.dataclass(frozen=True)
class View:
    """How the axes of an array are made of the atoms of the original weight."""

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
        """The view in another shape; an atom is split if a new axis ends inside it.

        Atoms of size one are dropped. Returns None if an atom would not divide evenly.
        """
        if 0 in shape:
            return None
        pending = [atom for atom in reversed(self.atoms) if atom.size > 1]
        axes: list[list[Atom]] = []
        for size in shape:
            axis: list[Atom] = []
            missing = size
            while missing > 1:
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
        return View(tuple(map(tuple, axes)))


def canonical(atoms: tuple[Atom, ...]) -> tuple[Atom, ...]:
    """The atoms in the order of the original array."""
    return tuple(sorted(atoms, key=lambda atom: (atom.axis, -atom.stride)))


def arrange(array: Array, atoms: tuple[Atom, ...], axes: tuple[Axis, ...], keep: int = 0) -> Array:
    """Rearrange an array, of `keep` leading axes and then `atoms`, into the given axes."""
    outer = array.shape[:keep]
    wanted = tuple(atom for axis in axes for atom in axis)
    if wanted != atoms:
        array = array.reshape(*outer, *(atom.size for atom in atoms))
        order = (*range(keep), *(keep + atoms.index(atom) for atom in wanted))
        array = array.transpose(order)
    shape = (*outer, *View(axes).shape)
    return array if array.shape == shape else array.reshape(shape)


def follow(eqn: JaxprEqn, view: View) -> View | None:
    """The view after an operation that at most rearranges axes, or None if it does more."""
    params = eqn.params
    match eqn.primitive.name:
        case "copy" | "copy_p" | "name" | "sharding_constraint" | "pvary":
            return view
        case "split" if len(params["sizes"]) == 1:
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


def sliced_axes(eqn: JaxprEqn, shape: tuple[int, ...]) -> list[int] | None:
    """The axes that a `slice` or `dynamic_slice` shortens, or None for another operation."""
    if eqn.primitive.name == "slice":
        sizes = jaxprs.shape(eqn.outvars[0])
    elif eqn.primitive.name == "dynamic_slice":
        sizes = eqn.params["slice_sizes"]
    else:
        return None
    return [dim for dim, (old, new) in enumerate(zip(shape, sizes, strict=True)) if old != new]


class Parts(NamedTuple):
    """An `unstack` or a `split`: all of one axis, in windows one after another."""

    axis: int
    sizes: tuple[int, ...]
    kept: bool
    """Whether the axis stays in each part."""


def as_parts(eqn: JaxprEqn, shape: tuple[int, ...]) -> Parts | None:
    """How an `unstack` or `split` takes an axis apart, or None for another operation."""
    match eqn.primitive.name:
        case "unstack":
            axis = eqn.params["axis"]
            return Parts(axis, (1,) * shape[axis], kept=False)
        case "split":
            return Parts(eqn.params["axis"], tuple(map(int, eqn.params["sizes"])), kept=True)
    return None


class Lookup(NamedTuple):
    """A `gather` of whole rows, `table[ids]`."""

    axis: int
    """The axis along which rows are taken."""
    column: int
    """The position of its index along the last axis of the indices."""
    kept: bool
    """Whether the axis stays, with size one."""
    batch: tuple[tuple[int, int], ...]
    """Pairs of an axis of the table and one of the indices: each has rows of its own there."""

    @property
    def tables(self) -> tuple[int, ...]:
        """The axes that index tables, each of which has rows of its own."""
        return tuple(axis for axis, _ in self.batch)


def as_lookup(eqn: JaxprEqn, shape: tuple[int, ...]) -> Lookup | None:
    """How a `gather` takes whole rows along one axis, or None for another kind of operation.

    Other axes may have an index too. If their slices are whole, only index 0 is in range, and
    indices are clipped to it.
    """
    if eqn.primitive.name != "gather":
        return None
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    indexed, collapsed = numbers.start_index_map, numbers.collapsed_slice_dims
    if len(indexed) > 1 and not clips(eqn):
        return None
    batch = numbers.operand_batching_dims, numbers.start_indices_batching_dims
    cut = [dim for dim in indexed if sizes[dim] != shape[dim]] or list(indexed[:1])
    if len(cut) != 1 or collapsed not in ((), (cut[0],)) or sizes[cut[0]] != 1:
        return None
    rest = {*range(len(shape))} - {cut[0], *batch[0]}
    if any(sizes[dim] != shape[dim] for dim in rest):
        return None
    return Lookup(cut[0], indexed.index(cut[0]), not collapsed, tuple(zip(*batch, strict=True)))


def clips(eqn: JaxprEqn) -> bool:
    """Whether a `gather` moves indices out of range to the nearest one in range."""
    return "FILL" not in str(eqn.params["mode"])


def fill_value(eqn: JaxprEqn) -> Any:
    """What a `gather` gives for indices out of range, or None for NaN (or if it clips)."""
    value = eqn.params["fill_value"]
    nan = value is None or clips(eqn) or value != value
    return None if nan else value
