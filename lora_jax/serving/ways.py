"""Ways to multiply each row of a batch by the low-rank factors of its own slot.

They are equal up to rounding. Each takes x (rows, tokens, in), slots (rows,), a (slots, rank, in)
and b (slots, rank, out), and gives `x[i] @ a[slots[i]].T @ b[slots[i]]` of every row i, the last
product in the dtype `accumulate`, or that of x if it is None:

    gather   copy each row's A and B, and multiply row by row
    concat   multiply all rows by all slots' A at once, keep each row's own part, multiply by all B
    ragged   sort the rows by slot, and multiply the rows of a slot together (`lax.ragged_dot`)

All factors must be finite: `concat` and `ragged` multiply those of other slots by zero, which for
an infinity or a NaN is NaN. `Bank.prepare` refuses such an adapter. In a bank that is trained, one
adapter that diverges spoils the rows of the others, unless its way is `gather`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


def one(x: Array, slot: Array, a: Array, b: Array, accumulate: Any = None) -> Array:
    """The product of one row: `x @ a[slot].T @ b[slot]` for x (tokens, in) and a number `slot`."""
    own_a, own_b = (lax.dynamic_index_in_dim(each, slot, keepdims=False) for each in (a, b))
    return jnp.matmul(x @ own_a.T, own_b, preferred_element_type=accumulate)


def gather(x: Array, slots: Array, a: Array, b: Array, accumulate: Any = None) -> Array:
    each = functools.partial(one, accumulate=accumulate)
    return jax.vmap(each, (0, 0, None, None))(x, slots, a, b)


def concat(x: Array, slots: Array, a: Array, b: Array, accumulate: Any = None) -> Array:
    count, rank, _ = a.shape
    hidden = x @ a.reshape(count * rank, -1).T
    own = jnp.repeat(slots[:, None] == jnp.arange(count, dtype=slots.dtype)[None], rank, axis=1)
    hidden = jnp.where(own[:, None], hidden, jnp.zeros((), hidden.dtype))
    flat = b.reshape(count * rank, -1)
    return jnp.matmul(hidden, flat, preferred_element_type=accumulate)


def ragged(x: Array, slots: Array, a: Array, b: Array, accumulate: Any = None) -> Array:
    rows, tokens, _ = x.shape
    order = jnp.argsort(slots)
    sizes = (tokens * jnp.bincount(slots, length=len(a))).astype(jnp.int32)
    flat = x[order].reshape(rows * tokens, -1)
    hidden = lax.ragged_dot(flat, a.mT, sizes)
    y = lax.ragged_dot(hidden, b, sizes, preferred_element_type=accumulate)
    y = y.reshape(rows, tokens, -1)
    return jnp.zeros_like(y).at[order].set(y)


WAYS: Mapping[str, Callable[..., Array]] = {
    "gather": gather,
    "concat": concat,
    "ragged": ragged,
}
