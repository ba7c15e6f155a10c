"""Rotations of blocks, by Cayley's parametrisation."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.methods.factorizations import inverse


def turns(q: Array, size: int) -> Array:
    """R - I for R = (I + Q) (I - Q)^-1, where Q is skew-symmetric: (..., size, size).

    Args:
      q: the entries of each Q below its diagonal, one column after the other,
        (..., size (size - 1) / 2).
    """
    columns, rows = np.triu_indices(size, 1)
    below = jnp.zeros((*q.shape[:-1], size, size), q.dtype).at[..., rows, columns].set(q)
    skew = below - below.mT
    identity = jnp.broadcast_to(jnp.eye(size, dtype=q.dtype), skew.shape)
    return inverse(identity - skew) @ (2 * skew)
