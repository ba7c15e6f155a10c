"""Which axes of activations come from an output axis of a weight.

A product may leave a weight's stacked axis free: `vmap` over members of an ensemble multiplies the
same inputs by all of them. What follows shows it: where the axis meets the stacked axis of another
weight, both index matrices. `discover` therefore follows output axes through activations.
"""

from collections.abc import Sequence

from jax.extend.core import JaxprEqn

from lora_jax.transform import jaxprs
from lora_jax.transform.views import View

Origin = tuple[str, int]
"""The path of a weight, and one of its axes."""
Origins = tuple[frozenset[Origin], ...]
"""The origins of each axis of an array; empty for an array of which they are not known."""
NONE: frozenset[Origin] = frozenset()


def after(eqn: JaxprEqn, operands: Sequence[Origins], shape: tuple[int, ...]) -> Origins:
    """The origins of an operation's result of this shape; unknown operations lose them."""
    params, first = eqn.params, operands[0] if operands else ()
    before = jaxprs.shape(eqn.invars[0]) if first else ()
    match eqn.primitive.name:
        case "dot_general":
            return product(eqn, operands)
        case "transpose" if first:
            return tuple(first[axis] for axis in params["permutation"])
        case "broadcast_in_dim" if first:
            places = dict(zip(params["broadcast_dimensions"], first, strict=True))
            return tuple(places.get(axis, NONE) for axis in range(len(shape)))
        case "squeeze" | "expand_dims" | "reshape" if first:
            view = View.of(before).reshape(shape)
            return tuple(_whole(axis, before, first) for axis in view.axes) if view else ()
        case "reduce_sum" | "reduce_max" | "reduce_min" | "argmax" | "argmin" if first:
            return tuple(each for axis, each in enumerate(first) if axis not in params["axes"])
        case "concatenate" | "slice" | "dynamic_slice" | "split" | "pad" if first:
            kept = zip(first, before, shape, strict=True)
            return tuple(each if old == new else NONE for each, old, new in kept)
    # The same axes, whatever is done along them.
    alike = [
        each
        for each, var in zip(operands, eqn.invars, strict=True)
        if each and jaxprs.shape(var) == shape
    ]
    return tuple(NONE.union(*axes) for axes in zip(*alike, strict=True))


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


def of_weight(path: str, view: View, shape: tuple[int, ...]) -> Origins:
    """The origins of a weight's own axes, where a view has them whole."""
    return tuple(
        frozenset({(path, axis[0].axis)})
        if len(axis) == 1 and axis[0].axis >= 0 and axis[0].size == shape[axis[0].axis]
        else NONE
        for axis in view.axes
    )


def _whole(axis: tuple, before: tuple[int, ...], origins: Origins) -> frozenset[Origin]:
    """The origins of an axis that a reshape keeps whole."""
    if len(axis) == 1 and axis[0].size == before[axis[0].axis]:
        return origins[axis[0].axis]
    return NONE
