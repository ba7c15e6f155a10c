"""Multiply each row of a batch by the low-rank factors of its own slot, in the fastest way.

The ways are equal up to rounding. Each takes x (rows, tokens, in), slots (rows,),
a (slots, rank, in) and b (slots, rank, out), and gives `x[i] @ a[slots[i]].T @ b[slots[i]]` of
every row i, the last product in the dtype `accumulate`, or that of x if it is None:

    gather   copy each row's A and B, and multiply row by row
    concat   multiply all rows by all slots' A at once, keep each row's own part, multiply by all B
    ragged   sort the rows by slot, and multiply the rows of a slot together (`lax.ragged_dot`)

`dot` takes the way that is asked for, or times all of them, once for each shape.

All factors must be finite: `concat` and `ragged` multiply those of other slots by zero, which for
an infinity or a NaN is NaN. `Bank.prepare` refuses such an adapter. In a bank that is trained, one
adapter that diverges spoils the rows of the others, unless its way is `gather`.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_batching import custom_vmap

USUAL = "gather"
"""It does no work that one adapter alone would not do, but copies factors."""
CLEAR = 0.8
"""Another way must take less than this share of the usual way's time. Small gains are noise, and
noise must not decide which of several roundings a program has."""
TIMES = 5
"""How often each way is timed; the shortest time counts."""
HOPELESS = 3.0
"""A way that first takes this many times as long as the usual one is not timed again."""
NEVER = {"cpu": ("ragged",)}
"""Ways that are not tried, by backend: on CPUs, XLA multiplies all rows by the factors of every
slot for `ragged_dot`, as `concat` does with less overhead."""


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
MEASURED = "measured"
NAMES = (MEASURED, *WAYS)
"""Names of the ways; `measured` takes the fastest for the shapes of each product."""


def dot(
    x: Array, slot: Array, a: Array, b: Array, way: str = MEASURED, accumulate: Any = None
) -> Array:
    """`x @ a[slot].T @ b[slot]`.

    Args:
      x: (tokens, in).
      slot: a number.
      a, b: (slots, rank, in) and (slots, rank, out).
      way: one of `NAMES`, for when it is mapped over rows and their slots by `jax.vmap`.
      accumulate: the dtype of the result; None for that of x.
    """
    if way == USUAL:
        return one(x, slot, a, b, accumulate)
    return _mapped(way, accumulate, set_precision())(x, slot, a, b)


def set_precision() -> str | None:
    """The precision of products that is set here.

    Who makes a rule of `custom_vmap` asks for it: inside a scan, the rule is traced when the scan
    is mapped, where another precision is set.
    """
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


def at_precision(function: Callable[..., Array], precision: str | None) -> Callable[..., Array]:
    """The function with a precision of products."""

    def computed(*args: Any) -> Array:
        with jax.default_matmul_precision(precision):
            return function(*args)

    return computed


@functools.cache
def _mapped(way: str, accumulate: Any, precision: str | None) -> Callable[..., Array]:
    """The product of one row at the precision that is set, with a rule of its own for many."""
    alone = at_precision(functools.partial(one, accumulate=accumulate), precision)
    mapped = custom_vmap(alone)

    @mapped.def_vmap
    def rule(size: int, batched: list[bool], *args: Array) -> tuple[Array, bool]:
        if batched == [True, True, False, False]:
            x, _, a, b = args
            own = fastest(Product.of(x, a, b)) if way == MEASURED else way
            return at_precision(WAYS[own], precision)(*args, accumulate), True
        axes = [0 if each else None for each in batched]
        return jax.vmap(alone, axes, axis_size=size)(*args), True

    return mapped


class Product(NamedTuple):
    """The shapes and the dtype of a product, which decide how long it takes."""

    rows: int
    tokens: int
    """Of each row."""
    slots: int
    rank: int
    inputs: int
    outputs: int
    dtype: str

    @classmethod
    def of(cls, x: Array, a: Array, b: Array) -> "Product":
        """The product of x (rows, tokens, in), a (slots, rank, in) and b (slots, rank, out)."""
        (rows, tokens, inputs), (slots, rank, _) = x.shape, a.shape
        return cls(rows, tokens, slots, rank, inputs, b.shape[-1], jnp.dtype(x.dtype).name)


def fastest(product: Product) -> str:
    """The way to compute a product on this process's default device.

    Several processes must compile the same program, and one row mixes nothing: both are computed
    in the usual way, without a measurement.
    """
    if jax.process_count() > 1 or product.rows == 1:
        return USUAL
    return chosen(seconds(product, jax.default_backend()))


def chosen(times: Mapping[str, float]) -> str:
    """The way that takes least, or the usual one where that is not clearly slower."""
    best = min(times, key=lambda way: times[way])
    return best if times[best] < CLEAR * times[USUAL] else USUAL


@functools.cache
def seconds(product: Product, backend: str) -> Mapping[str, float]:
    """The seconds that each way takes on random numbers; each product is measured once.

    A program may be being traced: what runs here is no part of it. A way that the device cannot
    compute, or that could not win there, is left out.

    Args:
      backend: JAX's default one, on whose first device it is measured.
    """
    with jax.ensure_compile_time_eval():
        given, calls = _drawn(product), {}
        for way, multiply in WAYS.items():
            if way in NEVER.get(backend, ()):
                continue
            call = functools.partial(jax.jit(multiply), *given)
            try:
                jax.block_until_ready(call())
            except jax.errors.JaxRuntimeError:
                if way == USUAL:
                    raise
                continue
            calls[way] = call
        times = {way: _timed(call) for way, call in calls.items()}
        most = HOPELESS * times[USUAL]
        for _ in range(TIMES - 1):  # in turns: what else the machine does hits all of them
            for way, call in calls.items():
                if times[way] < most:
                    times[way] = min(times[way], _timed(call))
    return times


def _timed(call: Callable[[], Array]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def _drawn(product: Product) -> list[Array]:
    """Random x, slots, a and b."""
    random = np.random.default_rng(0)
    rows, tokens, slots, rank, inputs, outputs, dtype = product

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32).astype(jnp.dtype(dtype))

    own = random.integers(0, slots, rows).astype(np.int32)
    a, b = normal(slots, rank, inputs), normal(slots, rank, outputs)
    return [jnp.asarray(each) for each in (normal(rows, tokens, inputs), own, a, b)]
