"""Find, by timing each, the fastest way to multiply the rows of a batch by their own factors."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.serving.ways import WAYS

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
