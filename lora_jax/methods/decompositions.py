"""Factorisations and inverses of matrices, their leading singular values, and rotations.

The factorisations are safe where a program has many of them.

XLA's CPU backend (jaxlib 0.10.1) gives LAPACK a stack of matrices as tasks for its threads, and
waits for these on a thread. A program with several such stacks, as one with a weight of its own for
each layer, may so wait for ever. On CPUs a stack is taken one matrix after the other here, and the
results then have no derivatives in reverse mode.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.base import replicated

_T = TypeVar("_T")


def _one_by_one(function: Callable[[Array], _T]) -> Callable[[Array], _T]:
    """The function of one matrix, which takes those of a stack in turn on CPUs."""
    in_turn = jax.custom_batching.sequential_vmap(function)
    return lambda matrix: (in_turn if jax.default_backend() == "cpu" else function)(matrix)


@_one_by_one
def qr(matrix: Array) -> tuple[Array, Array]:
    """`jnp.linalg.qr` of a matrix (m, n)."""
    q, r = jnp.linalg.qr(matrix)
    return q, r


@_one_by_one
def eigh(matrix: Array) -> tuple[Array, Array]:
    """`jnp.linalg.eigh` of a symmetric matrix (n, n): values (n,), the smallest first, vectors."""
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


@_one_by_one
def svd(matrix: Array) -> tuple[Array, Array, Array]:
    """`jnp.linalg.svd` of a matrix (m, n), without the vectors that have no singular value."""
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return u, s, vt


@jax.custom_jvp
def inverse(x: Array) -> Array:
    """The inverse of triangular matrices, or with positive definite symmetric parts (..., n, n).

    By Gauss and Jordan, without pivots, which such matrices do not need.
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


@inverse.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    found = inverse(*primals)
    with jax.default_matmul_precision("highest"):  # as exact as the inverse
        return found, -found @ tangents[0] @ found


# -- the leading, or the smallest, singular values -------------------------------------------------


# For initialisations that start from a weight. The leading ones do without a full SVD, which
# computes all directions to keep a few.

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


# -- rotations of blocks, by Cayley's parametrisation ----------------------------------------------


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
