"""Factorisations of small matrices, each safe where a program has many of them.

XLA's CPU backend (jaxlib 0.10.1) gives LAPACK a stack of matrices as tasks for its threads, and
waits for these on a thread. A program with several such stacks, as one with a weight of its own for
each layer, may so wait for ever. On CPUs a stack is taken one matrix after the other here, and the
results then have no derivatives in reverse mode.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

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
