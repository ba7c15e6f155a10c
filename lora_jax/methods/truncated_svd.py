"""The leading, or the smallest, singular values and vectors of a matrix.

For initialisations that start from a weight. The leading ones do without a full SVD, which computes
all directions to keep a few.
"""

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.explicit_sharding import replicated
from lora_jax.methods.factorizations import eigh, qr, svd

OVERSAMPLING = 8
"""Extra directions that `randomized_svd` follows (Halko et al. 2011, section 4.3)."""

Triplets = tuple[Array, Array, Array]
"""U (m, rank) and V^T (rank, n), orthonormal, with the singular values (rank,) between them."""


def truncated_svd(matrix: Array, rank: int) -> Triplets:
    """The `rank` largest singular values of a matrix (m, n), largest first, and their vectors.

    The leading eigenvectors of the smaller Gram matrix, W W^T or W^T W, span a subspace; one
    multiplication by W improves it, and an SVD within it gives the result. This takes
    2 m n min(m, n) operations for products, and an eigendecomposition of the smaller side.

    Errors, in units of the largest singular value, are those of a full SVD, a few roundings (about
    1e-6 in float32), for singular values above the square root of a rounding error (3e-4 in
    float32, 1.5e-8 in float64). Smaller ones have an error of up to that root. Of the vectors of
    the longer side, the largest entries are positive, so that rounding does not choose the signs.

    Args:
      matrix: in float32 or float64.
      rank: at most min(m, n).
    """
    if matrix.shape[0] < matrix.shape[1]:
        u, s, vt = truncated_svd(matrix.T, rank)
        return vt.T, s, u.T
    matrix = replicated(matrix)
    size = jnp.abs(matrix).max()
    size = jnp.where(size > 0, size, 1)  # squares neither overflow nor vanish
    scaled = matrix / size
    with jax.default_matmul_precision("highest"):
        _, vectors = eigh(scaled.T @ scaled)  # smallest first
        q, _ = qr(scaled @ vectors[:, -rank:])
        u, s, vt = _within(q, scaled)
    signs = _signs(u)
    return signs * u, size * s, signs.T * vt


def minor_svd(matrix: Array, rank: int) -> Triplets:
    """The `rank` smallest singular values of a matrix (m, n), largest first, and their vectors.

    This is a full SVD. A Gram matrix holds the squares of the values: those below the square root
    of a rounding error of the largest would be lost in it.

    Errors are those of a full SVD: a few roundings of the largest singular value of the matrix.
    So the vectors of values that differ by less are mixed, and in float32 values below about 1e-7
    of the largest are noise. Signs are those of `truncated_svd`.

    Args:
      matrix: in float32 or float64.
      rank: at most min(m, n).
    """
    with jax.default_matmul_precision("highest"):
        u, s, vt = svd(replicated(matrix))
    u, s, vt = u[:, -rank:], s[-rank:], vt[-rank:]
    signs = _signs(u if matrix.shape[0] >= matrix.shape[1] else vt.T)
    return signs * u, s, signs.T * vt


def randomized_svd(key: Array, matrix: Array, rank: int, iterations: int) -> Triplets:
    """The same, from random directions: less accurate, and faster where both sides are long.

    Halko et al. 2011, algorithm 4.4. Directions beyond the wanted ones fade as the power
    2 * iterations + 1 of the ratio of their singular values to the wanted ones.
    """
    matrix = replicated(matrix)
    followed = min(rank + OVERSAMPLING, *matrix.shape)
    start = jax.random.normal(key, (matrix.shape[1], followed), matrix.dtype)
    q, _ = qr(matrix @ start)
    for _ in range(iterations):
        q, _ = qr(matrix.T @ q)
        q, _ = qr(matrix @ q)
    u, s, vt = _within(q, matrix)
    return u[:, :rank], s[:rank], vt[:rank]


def _within(q: Array, matrix: Array) -> Triplets:
    """The singular values and vectors of a matrix within the space of the columns of Q."""
    u, s, vt = svd(q.T @ matrix)
    return q @ u, s, vt


def _signs(vectors: Array) -> Array:
    """The signs, (1, rank), that make the largest entry of each column of (m, rank) positive."""
    largest = jnp.take_along_axis(vectors, jnp.abs(vectors).argmax(axis=0, keepdims=True), axis=0)
    return jnp.where(largest < 0, -1, 1).astype(vectors.dtype)
