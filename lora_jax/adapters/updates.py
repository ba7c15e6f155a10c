"""The update of a weight, dW = W' - W, of any variant: as two factors where it has them.

`of_rank` gives the closest factors of a rank, and how far they are from it.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.methods.decompositions import truncated_svd
from lora_jax.transform.adapted_weight import with_shared
from lora_jax.transform.placement import Frozen, Placement, Trainable, base_of, group_of
from lora_jax.variant import Base, Factors, Variant

Adapter = tuple[Trainable, Frozen]
"""What `init` gave, or `load_adapter`, trained or not."""
Index = tuple[int, ...]
"""The place of one matrix in the stack of a weight; empty without a stack."""


class Factored(NamedTuple):
    """An update of low rank, dW = A^T B."""

    a: np.ndarray
    """(rank, in)."""
    b: np.ndarray
    """(rank, out)."""


Update = Factored | np.ndarray
"""The update of one matrix: two factors, or the dense (in, out) array; float64."""


def dense(update: Update) -> np.ndarray:
    """The (in, out) array of an update."""
    return update.a.T @ update.b if isinstance(update, Factored) else update


def in_float64(adapter: Adapter) -> Adapter:
    """The adapter with its factors in float64; the base stays as it is stored.

    W' - W then has no rounding error of the adapter's own dtype. Call it, and use what it gives,
    under `jax.enable_x64`.
    """
    trainable, frozen = adapter
    constants, shared = widened((frozen.constants, frozen.shared))
    parts = {name: widened(trainable[name]) for name in trainable if name != "params"}
    trainable = {**trainable, **parts}
    return trainable, dataclasses.replace(frozen, constants=constants, shared=shared)


def placements(frozen: Frozen) -> dict[str, Placement]:
    """The adapted weights by path."""
    return {each.use.path: each for each in frozen.spec.adapted}


def updates(path: str, adapters: Sequence[Adapter]) -> Iterator[tuple[Index, list[Update | None]]]:
    """The updates of each matrix of a weight, one matrix at a time: one of each adapter, in order.

    None stands for an adapter that leaves the matrix as it is.

    Args:
      path: a weight that at least one of them adapts.
      adapters: results of `in_float64`.
    """
    found = [placements(frozen).get(path) for _, frozen in adapters]
    stack = next(each for each in found if each is not None).use.stack_shape
    for index in np.ndindex(stack):
        yield (
            index,
            [
                None if placement is None else _update(placement, *adapter, index)
                for placement, adapter in zip(found, adapters, strict=True)
            ],
        )


def matrix(placement: Placement, frozen: Frozen, index: Index) -> Base:
    """One matrix of a weight, as it is stored, that computes in float64."""
    base = base_of(placement, frozen.base[placement.use.path])
    return jax.tree.map(lambda leaf: leaf[index], base).astype(jnp.float64)


def _update(
    placement: Placement, trainable: Trainable, frozen: Frozen, index: Index
) -> Update | None:
    path, variant = placement.use.path, group_of(placement)
    whole = Factors(trainable["adapters"][path], frozen.constants[path])
    one = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[index]), whole)
    if not one.constants.get("active", True):
        return None
    factors = with_shared(one, frozen.shared_by(trainable)[placement.variant])
    return update_of(variant, matrix(placement, frozen, index), factors)


def update_of(variant: Variant, base: Base, factors: Factors) -> Update:
    """The update of one matrix, from a base and factors in float64."""
    if (found := variant.as_lora(base, factors)) is not None:
        return Factored(*map(np.asarray, found))
    return np.asarray(variant.weight(base, factors) - base.dense())


def widened(tree: Any) -> Any:
    """A tree with its real numbers in float64; call it under `jax.enable_x64`."""

    def widen(leaf: Array) -> Array:
        real = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(np.asarray(leaf).astype(np.float64)) if real else leaf

    return jax.tree.map(widen, tree)


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
