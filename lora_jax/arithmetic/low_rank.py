"""An update as two factors of a rank, the closest ones, and how far they are from it."""

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.arithmetic.updates import Factored, Update
from lora_jax.methods.decompositions import truncated_svd

Triplets = tuple[np.ndarray, np.ndarray, np.ndarray]
"""U (in, rank) and V^T (rank, out), with the singular values (rank,) between them."""


def of_rank(update: Update, rank: int) -> tuple[Factored, float]:
    """A and B of a rank with A^T B closest to dW, and the relative error |A^T B - dW| / |dW|.

    Factors of a lower rank stay as they are, with rows of zeros; then the error is zero. Otherwise
    this is the truncated SVD, which no other matrix of the rank is closer than (Eckart and Young
    1936), and both factors get the root of the singular values.

    Args:
      rank: at most min(in, out).
    """
    if isinstance(update, Factored):
        missing = rank - len(update.a)
        if missing >= 0:
            return Factored(*(np.pad(each, ((0, missing), (0, 0))) for each in update)), 0.0
        u, s, vt = _svd_of_factors(update)
        kept = _balanced(u[:, :rank], s[:rank], vt[:rank])
        return kept, _ratio(np.linalg.norm(s[rank:]), np.linalg.norm(s))
    found = _balanced(*leading(update, rank))
    return found, _ratio(np.linalg.norm(found.a.T @ found.b - update), np.linalg.norm(update))


def leading(update: Update, rank: int) -> Triplets:
    """The largest singular values of an update and their vectors, as of `truncated_svd`.

    Factors of a lower rank than `rank` give as many as their rank.
    """
    if isinstance(update, Factored):
        u, s, vt = _svd_of_factors(update)
        return u[:, :rank], s[:rank], vt[:rank]
    with jax.enable_x64(True):
        u, s, vt = map(np.asarray, truncated_svd(jnp.asarray(update), rank))
    return u, s, vt


def _svd_of_factors(update: Factored) -> Triplets:
    """The SVD of A^T B without the dense matrix, from that of the product of two triangles."""
    q_in, r_in = np.linalg.qr(update.a.T)
    q_out, r_out = np.linalg.qr(update.b.T)
    u, s, vt = np.linalg.svd(r_in @ r_out.T, full_matrices=False)
    return q_in @ u, s, vt @ q_out.T


def _balanced(u: np.ndarray, s: np.ndarray, vt: np.ndarray) -> Factored:
    root = np.sqrt(s)
    return Factored((u * root).T, root[:, None] * vt)


def _ratio(error: np.floating, size: np.floating) -> float:
    return float(error / size) if size else 0.0
