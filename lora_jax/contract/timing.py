"""How long a variant's `dot` takes beside the product with its dense weight; no clause."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lora_jax.contract.toys import factors_of, normal, seen_of, unit
from lora_jax.variant import Base, Variant

ROWS, WIDTH, ROUNDS = 256, 768, 10


def dot_time(variant: Variant) -> tuple[float, str]:
    """The time of `dot` over that of `x @ W'` with a dense W', and of what it was measured.

    Both are compiled as users compile them, for float32 on the default device. They run in turns,
    and the shortest time of each counts.
    """
    shape = _shape(variant)
    seen = seen_of(variant, shape, jnp.float32)
    base = Base(normal(shape, 0, jnp.float32, shape[0] ** -0.5), "io", seen=seen)
    x = normal((ROWS, shape[0]), 1, jnp.float32)
    factors = jax.jit(lambda base: factors_of(variant, base))(base)
    weight = jax.jit(lambda *given: variant.weight(*given))(base, factors)
    dot = jax.jit(lambda *given: variant.dot(*given))
    dense = jax.jit(jnp.matmul)
    calls = (lambda: dot(x, base, factors)), (lambda: dense(x, weight))
    for call in calls:
        _seconds(call)  # compiles
    times = [[_seconds(call) for call in calls] for _ in range(ROUNDS)]
    own, plain = (min(column) for column in zip(*times, strict=True))
    size = " x ".join(map(str, (ROWS, *shape)))
    return own / plain, f"{size}, float32, {jax.default_backend()}"


def _shape(variant: Variant) -> tuple[int, int]:
    """A square matrix that the variant works for, about as wide as a small model's."""
    size = unit(variant)
    wide = max(WIDTH // size, 2) * size
    try:
        variant.validate((wide, wide))
    except ValueError:
        wide = 2 * size
    return wide, wide


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start
