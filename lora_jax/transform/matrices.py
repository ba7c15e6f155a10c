"""Find which axes of a trainable form matrices, for optimisers that step matrices as such."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from lora_jax.transform.placement import Frozen


class Axes(NamedTuple):
    """The input and output axes of an array's matrices; all other axes are of the stack."""

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
