"""How far adapters move weights, and how much alike they do: `lj.distance`.

Everything is computed from the update of each weight, dW = W' - W, in float64 and one matrix at a
time, so adapters of any methods can be compared. Results are by path; arrays have the shape of the
weight's stack first. What trains in full is left out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from lora_jax.adapters.combination import require_one_base
from lora_jax.adapters.updates import (
    Adapter,
    Factored,
    Update,
    dense,
    in_float64,
    leading,
    matrix,
    placements,
    updates,
)
from lora_jax.messages import require_known
from lora_jax.methods.checks import require_count

SIDES = ("in", "out")


class Norms(NamedTuple):
    """Frobenius norms, in the shape of the weight's stack."""

    update: np.ndarray
    """|dW|."""
    relative: np.ndarray
    """|dW| / |W|, with W as it is stored."""


def norms(adapter: Adapter) -> dict[str, Norms]:
    """How far an adapter moves each weight that it adapts."""

    def of(found: list[Update | None], base: np.ndarray) -> tuple[float, float]:
        size = _norm(found[0])
        return size, size / (float(np.linalg.norm(base)) or 1.0)

    return {path: Norms(each[..., 0], each[..., 1]) for path, each in _each(of, adapter).items()}


def cosine(one: Adapter, other: Adapter) -> dict[str, np.ndarray]:
    """<dW, dW'> / (|dW| |dW'|) of each weight that both adapt; NaN where one dW is zero.

    Raises:
      ValueError: the bases differ.
    """

    def of(found: list[Update | None], base: np.ndarray) -> float:
        first, second = found
        if first is None or second is None:
            return np.nan
        sizes = _norm(first) * _norm(second)
        return float(np.vdot(dense(first), dense(second)) / sizes) if sizes else np.nan

    return _each(of, one, other)


def subspace_similarity(
    one: Adapter, other: Adapter, i: int = 8, j: int = 8, side: str = "in"
) -> dict[str, np.ndarray]:
    """phi(i', j') = |U_i'^T V_j'|^2 / min(i', j') for i' <= i, j' <= j: (*stack, i, j), in [0, 1].

    Hu et al. 2021, arXiv 2106.09685, section 7.2, equation 4. U_i' are the i' leading singular
    vectors of one dW, V_j' those of the other. The paper takes them from A; A can be changed
    without changing dW, and not all methods have one, so here they are those of dW. NaN where dW
    has no such vector, as its rank is lower.

    Args:
      side: `in`, as in the paper, for the directions of the inputs that dW reads, or `out` for
        those of the outputs that it writes.

    Raises:
      ValueError: the bases differ, or a setting cannot work.
    """
    require_known(side, SIDES, f"side '{side}' is unknown")
    require_count("i", i)
    require_count("j", j)

    def of(found: list[Update | None], base: np.ndarray) -> np.ndarray:
        u, v = (_directions(x, n, side, base) for x, n in zip(found, (i, j), strict=True))
        shared = ((u.T @ v) ** 2).cumsum(axis=0).cumsum(axis=1)
        return shared / np.minimum(np.arange(1, i + 1)[:, None], np.arange(1, j + 1))

    return _each(of, one, other)


def intruder_dimensions(
    adapter: Adapter, k: int = 10, epsilon: float = 0.5
) -> dict[str, np.ndarray]:
    """How many of the k leading singular vectors of W' are like none of W, in the stack's shape.

    Shuttleworth et al. 2024, arXiv 2410.21228, algorithm 1: the vectors of the outputs, and all of
    W's to compare with. Takes two full SVDs of each matrix.

    Args:
      epsilon: an intruder's |cosine| with every vector of W is below this.
    """
    require_count("k", k)

    def of(found: list[Update | None], base: np.ndarray) -> int:
        if found[0] is None:
            return 0
        _, _, known = np.linalg.svd(base, full_matrices=False)
        _, _, moved = np.linalg.svd(base + dense(found[0]), full_matrices=False)
        return int((np.abs(moved[:k] @ known.T).max(axis=1) < epsilon).sum())

    return _each(of, adapter)


def _each(
    of: Callable[[list[Update | None], np.ndarray], Any], *adapters: Adapter
) -> dict[str, np.ndarray]:
    """A function of the updates of a matrix and of the matrix itself, (in, out), over all that
    every adapter adapts.
    """
    require_one_base([frozen for _, frozen in adapters])
    results = {}
    with jax.enable_x64(True):
        wide = [in_float64(each) for each in adapters]
        placed = [placements(frozen) for _, frozen in wide]
        for path, first in placed[0].items():
            if all(path in each for each in placed):
                found = [
                    of(every, np.asarray(matrix(first, wide[0][1], index).dense()))
                    for index, every in updates(path, wide)
                ]
                shape = (*first.use.stack_shape, *np.shape(found[0]))
                results[path] = np.reshape(found, shape)
    return results


def _norm(update: Update | None) -> float:
    if update is None:
        return 0.0
    if isinstance(update, Factored):
        _, update, _ = leading(update, len(update.a))
    return float(np.linalg.norm(update))


def _directions(update: Update | None, count: int, side: str, base: np.ndarray) -> np.ndarray:
    """The leading singular vectors of a side, (size, count); NaN beyond the rank of the update."""
    size = base.shape[SIDES.index(side)]
    found = np.full((size, count), np.nan)
    if update is not None:
        u, s, vt = leading(update, min(count, *base.shape))
        kept = int((s > 1e-7 * s[:1]).sum())
        found[:, :kept] = (u if side == "in" else vt.T)[:, :kept]
    return found
