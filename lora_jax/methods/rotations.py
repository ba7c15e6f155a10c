"""Rotations of blocks, by Cayley's parametrisation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.methods.factorizations import inverse


def turns(q: Array, size: int, terms: int = 0) -> Array:
    """R - I for R = (I + Q) (I - Q)^-1, where Q is skew-symmetric: (..., size, size).

    Args:
      q: the entries of each Q below its diagonal, one column after the other,
        (..., size (size - 1) / 2).
      terms: instead of R, its series is computed up to so many terms, as PEFT has it:
        I + 2 Q + 2 Q^2 + ... + 2 Q^(terms - 2) + Q^(terms - 1), of at least four.
    """
    columns, rows = np.triu_indices(size, 1)
    below = jnp.zeros((*q.shape[:-1], size, size), q.dtype).at[..., rows, columns].set(q)
    skew = below - below.mT
    with jax.default_matmul_precision("highest"):  # a rotation only if these are not rounded
        if terms:
            return _series(skew, terms)
        identity = jnp.broadcast_to(jnp.eye(size, dtype=q.dtype), skew.shape)
        return inverse(identity - skew) @ (2 * skew)


def side_of(entries: int) -> int:
    """The size of a matrix that has so many entries below its diagonal."""
    return (1 + math.isqrt(1 + 8 * entries)) // 2


def _series(skew: Array, terms: int) -> Array:
    turn = power = 2 * skew
    for _ in range(terms - 3):
        power = power @ skew
        turn = turn + power
    return turn + power @ skew / 2
