"""Which axes of activations come from an output axis of a weight.

A product may leave a weight's stacked axis free: `vmap` over members of an ensemble multiplies the
same inputs by all of them. What follows shows it: where the axis meets the stacked axis of another
weight, both index matrices. `discover` therefore follows output axes through activations.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from jax.extend.core import JaxprEqn
from jax.lax import GatherDimensionNumbers

from lora_jax.transform import jaxprs
from lora_jax.transform.views import View

Origin = tuple[str, int]
"""The path of a weight, and one of its axes."""
Origins = tuple[frozenset[Origin], ...]
"""The origins of each axis of an array; empty for an array of which they are not known."""
NONE: frozenset[Origin] = frozenset()


def after(eqn: JaxprEqn, operands: Sequence[Origins], shape: tuple[int, ...]) -> Origins:
    """The origins of an operation's result of this shape; unknown operations lose them."""
    if eqn.primitive.name == "dot_general":
        return product(eqn, operands)
    found = [NONE] * len(shape)
    for number, (each, var) in enumerate(zip(operands, eqn.invars, strict=True)):
        before = jaxprs.shape(var)
        for axis, place in _places(eqn, number, before, shape) if each else ():
            if before[axis] == shape[place]:
                found[place] |= each[axis]
    return tuple(found) if any(found) else ()


def _places(
    eqn: JaxprEqn, number: int, before: tuple[int, ...], shape: tuple[int, ...]
) -> Iterable[tuple[int, int]]:
    """Which axes of an operand an operation goes along, and their places in its result."""
    params, axes = eqn.params, range(len(before))
    match eqn.primitive.name:
        case "transpose":
            return zip(params["permutation"], axes, strict=True)
        case "broadcast_in_dim":
            return enumerate(params["broadcast_dimensions"])
        case "squeeze" | "expand_dims" | "reshape":
            view = View.of(before).reshape(shape)
            new = enumerate(view.axes) if view else ()
            return ((axis[0].axis, place) for place, axis in new if len(axis) == 1)
        case "stack":
            return ((axis, axis + (axis >= params["axis"])) for axis in axes)
        case "unstack":
            return ((axis, place) for place, axis in enumerate(_rest(axes, [params["axis"]])))
        case "conv_general_dilated":
            numbers = params["dimension_numbers"]
            pairs = [*zip(numbers.lhs_spec, numbers.out_spec, strict=True)]
            return () if number else [pairs[0], *pairs[2:]]  # without the channels, which it mixes
        case "gather":
            return () if number else _windows(params["dimension_numbers"], axes, len(shape))
        case name if name.startswith("scatter") and number:
            own = _windows(params["dimension_numbers"], range(len(shape)), len(before))
            return ((axis, place) for place, axis in own) if number == 2 else ()
    if len(before) > len(shape):  # a reduction
        kept = _rest(axes, params.get("axes", params.get("dimensions", axes)))
        return ((axis, place) for place, axis in enumerate(kept))
    return zip(axes, axes, strict=True) if len(before) == len(shape) else ()


def _windows(numbers: Any, axes: range, rank: int) -> Iterable[tuple[int, int]]:
    """The axes of an array, and their places in the windows of it that are moved.

    Args:
      numbers: those of a `gather` from the array, or of a `scatter` into it.
      rank: that of the array of all windows.
    """
    if isinstance(numbers, GatherDimensionNumbers):
        window, gone = numbers.offset_dims, numbers.collapsed_slice_dims
        rows = numbers.start_indices_batching_dims
    else:
        window, gone = numbers.update_window_dims, numbers.inserted_window_dims
        rows = numbers.scatter_indices_batching_dims
    batch, apart = numbers.operand_batching_dims, _rest(range(rank), window)
    own = zip(_rest(axes, (*gone, *batch)), window, strict=True)
    return (*own, *((axis, apart[row]) for axis, row in zip(batch, rows, strict=True)))


def _rest(axes: range, gone: Sequence[int]) -> list[int]:
    return [axis for axis in axes if axis not in gone]


def product(eqn: JaxprEqn, operands: Sequence[Origins]) -> Origins:
    """The origins of a `dot_general`'s result: batch axes, then the free ones of both sides."""
    contract, batch = eqn.params["dimension_numbers"]
    sides = [
        each or (NONE,) * len(jaxprs.shape(var))
        for each, var in zip(operands, eqn.invars, strict=True)
    ]
    left, right = ([side[axis] for axis in axes] for side, axes in zip(sides, batch, strict=True))
    free = (
        each
        for side, *used in zip(sides, contract, batch, strict=True)
        for axis, each in enumerate(side)
        if axis not in (*used[0], *used[1])
    )
    return (*(one | other for one, other in zip(left, right, strict=True)), *free)


def lookup(eqn: JaxprEqn, table: Origins, rows: Origins) -> Origins:
    """The origins of a `gather`'s result: the axes of the indices, and those of whole rows."""
    numbers = eqn.params["dimension_numbers"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    whole = zip(table, jaxprs.shape(eqn.invars[0]), eqn.params["slice_sizes"], strict=True)
    kept = iter(
        each if size == full else NONE
        for axis, (each, full, size) in enumerate(whole)
        if axis not in gone
    )
    places = jaxprs.shape(eqn.outvars[0])
    index = iter(rows or (NONE,) * len(places))
    return tuple(
        next(kept if axis in numbers.offset_dims else index) for axis in range(len(places))
    )


def of_weight(path: str, view: View, shape: tuple[int, ...]) -> Origins:
    """The origins of a weight's own axes, where a view has them whole."""
    return tuple(
        frozenset({(path, axis[0].axis)})
        if len(axis) == 1 and axis[0].axis >= 0 and axis[0].size == shape[axis[0].axis]
        else NONE
        for axis in view.axes
    )
