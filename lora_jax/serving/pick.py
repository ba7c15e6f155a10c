"""The low-rank product of each row of a batch with the factors of its own slot.

`dot(x, slot, a, b)` is the product of one row. Under `jax.vmap` over rows and their slots, it is
computed in one of these ways, which are equal up to rounding:

    gather   copy each row's A and B, and multiply row by row
    concat   multiply all rows by all slots' A at once, keep each row's own part, multiply by all B
    ragged   sort the rows by slot, and multiply the rows of a slot together (`lax.ragged_dot`)
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

WAYS = ("gather", "concat", "ragged")


def dot(x: Array, slot: Array, a: Array, b: Array, way: str = "gather") -> Array:
    """`x @ a[slot].T @ b[slot]`.

    Args:
      x: (tokens, in).
      slot: a number.
      a, b: (slots, rank, in) and (slots, rank, out).
      way: one of `WAYS`, for when it is mapped over rows.
    """
    return _one(x, slot, a, b) if way == "gather" else _mapped(way)(x, slot, a, b)


def _one(x: Array, slot: Array, a: Array, b: Array) -> Array:
    mine = functools.partial(lax.dynamic_index_in_dim, index=slot, keepdims=False)
    return (x @ mine(a).T) @ mine(b)


@functools.cache
def _mapped(way: str) -> Callable[..., Array]:
    """The product of one row, with a rule of its own for many."""
    rows = {"concat": _concat, "ragged": _ragged}[way]
    one = custom_vmap(_one)

    @one.def_vmap
    def rule(size: int, batched: list[bool], *args: Array) -> tuple[Array, bool]:
        if batched == [True, True, False, False]:
            return rows(*args), True
        axes = [0 if each else None for each in batched]
        return jax.vmap(_one, axes, axis_size=size)(*args), True

    return one


def _concat(x: Array, slots: Array, a: Array, b: Array) -> Array:
    """For x (rows, tokens, in) and slots (rows,)."""
    count, rank, _ = a.shape
    hidden = x @ a.reshape(count * rank, -1).T
    own = jnp.repeat(slots[:, None] == jnp.arange(count)[None], rank, axis=1)
    hidden = jnp.where(own[:, None], hidden, jnp.zeros((), hidden.dtype))
    return hidden @ b.reshape(count * rank, -1)


def _ragged(x: Array, slots: Array, a: Array, b: Array) -> Array:
    """For x (rows, tokens, in) and slots (rows,)."""
    rows, tokens, _ = x.shape
    order = jnp.argsort(slots)
    sizes = tokens * jnp.bincount(slots, length=len(a))
    flat = x[order].reshape(rows * tokens, -1)
    hidden = lax.ragged_dot(flat, a.mT, sizes.astype(jnp.int32))
    y = lax.ragged_dot(hidden, b, sizes.astype(jnp.int32)).reshape(rows, tokens, -1)
    return jnp.zeros_like(y).at[order].set(y)
