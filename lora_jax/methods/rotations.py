"""Rotations of blocks, by Cayley's parametrisation."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


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
    return _inverse(identity - skew) @ (2 * skew)


@jax.custom_jvp
def _inverse(x: Array) -> Array:
    """The inverse of matrices x (..., n, n) whose symmetric part is positive definite.

    By Gauss and Jordan, without pivots, which such matrices do not need. LAPACK's solver is not
    used: where an unrolled program has one for each layer, the threads of XLA's CPU backend may
    wait for each other for ever (jaxlib 0.10.1).
    """

    def eliminate(k: Array, m: Array) -> Array:
        rows, columns = (
            jax.lax.broadcasted_iota(k.dtype, x.shape, x.ndim - n) == k for n in (2, 1)
        )
        row = jax.lax.dynamic_index_in_dim(m, k, axis=-2)
        column = jax.lax.dynamic_index_in_dim(m, k, axis=-1)
        pivot = jax.lax.dynamic_index_in_dim(column, k, axis=-2)
        inside = m - column * (row / pivot)
        beside = jnp.where(columns, -column / pivot, inside)
        return jnp.where(rows, jnp.where(columns, 1 / pivot, row / pivot), beside)

    return jax.lax.fori_loop(0, x.shape[-1], eliminate, x)


@_inverse.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverse = _inverse(*primals)
    return inverse, -inverse @ tangents[0] @ inverse
