"""The update of a weight, dW = W' - W, of any variant: as two factors where it has them."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

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
