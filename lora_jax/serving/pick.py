"""The low-rank product of a row with the factors of its own slot, for one row or for many."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.custom_batching import custom_vmap

from lora_jax.serving import ways
from lora_jax.serving.fastest_way import USUAL, Product, fastest

MEASURED = "measured"
WAYS = (MEASURED, *ways.WAYS)
"""Names of the ways; `measured` takes the fastest for the shapes of each product."""


def dot(
    x: Array, slot: Array, a: Array, b: Array, way: str = MEASURED, accumulate: Any = None
) -> Array:
    """`x @ a[slot].T @ b[slot]`.

    Args:
      x: (tokens, in).
      slot: a number.
      a, b: (slots, rank, in) and (slots, rank, out).
      way: one of `WAYS`, for when it is mapped over rows and their slots by `jax.vmap`.
      accumulate: the dtype of the result; None for that of x.
    """
    if way == USUAL:
        return ways.one(x, slot, a, b, accumulate)
    return _mapped(way, accumulate)(x, slot, a, b)


@functools.cache
def _mapped(way: str, accumulate: Any) -> Callable[..., Array]:
    """The product of one row, with a rule of its own for many."""
    alone = functools.partial(ways.one, accumulate=accumulate)
    one = custom_vmap(alone)

    @one.def_vmap
    def rule(size: int, batched: list[bool], *args: Array) -> tuple[Array, bool]:
        if batched == [True, True, False, False]:
            x, _, a, b = args
            own = fastest(Product.of(x, a, b)) if way == MEASURED else way
            return ways.WAYS[own](*args, accumulate), True
        axes = [0 if each else None for each in batched]
        return jax.vmap(alone, axes, axis_size=size)(*args), True

    return one
