"""Combine adapters of one base into a plain LoRA adapter: `combine_adapters(adapters, lora)`."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.arithmetic.in_full import combined_in_full, paths_in_full
from lora_jax.arithmetic.low_rank import of_rank
from lora_jax.arithmetic.merging import Method
from lora_jax.arithmetic.one_base import require_one_base, whole_base
from lora_jax.arithmetic.plain_lora import as_adapter
from lora_jax.arithmetic.updates import Adapter, Factored, Update, in_float64, updates
from lora_jax.methods.checks import require_rank
from lora_jax.partition import select_paths
from lora_jax.transform.placement import Frozen, Placement, Trainable, require_order
from lora_jax.variant import Variant


class Combined(NamedTuple):
    """What `combine_adapters` makes."""

    trainable: Trainable
    """As of `init`, with LoRA for every weight that any of the adapters adapts."""
    frozen: Frozen
    errors: dict[str, np.ndarray]
    """|A^T B - dW| / |dW| (Frobenius) of each weight's matrices, in the shape of its stack.

    Zero where the rank is enough; the rounding of A and B to their dtype is not counted.
    """


def combine_adapters(
    adapters: Sequence[Adapter],
    lora: Variant,
    weights: Sequence[float] | None = None,
    by: str = "sum",
    *,
    rank: int | None = None,
    density: float | None = None,
    seed: int = 0,
    start: Mapping[str, Array] | Sequence[Mapping[str, Array]] | None = None,
    keep: Sequence[str] | str = (),
) -> Combined:
    """One LoRA adapter whose update of each weight, dW = W' - W, is a combination of others'.

    The adapters may be of any methods and ranks, and adapt different weights of the same base,
    quantised or not. What any of them trains in full (heads, biases, whole weights), and biases
    that they change, are combined linearly (`Method.coefficients`), and train in full in the
    result. It computes in float64, and holds the dense updates of one matrix at a time.

    Args:
      adapters: `(trainable, frozen)` of each, from `init` or `load_adapter`.
      lora: plain LoRA, `variants.make("lora")`; its rank and alpha are replaced, its dropout stays.
      weights: w_i of each adapter; None: 1 for each, or 1/2 to interpolate.
      by: `sum`, `linear`, `ties`, `dare`, `interpolate` or `negate`, as `merging.Method` says.
      rank: of every weight, but at most min(in, out); what exceeds it is cut by SVD. None: the
        least rank that is exact, the sum of the adapters' ranks.
      density, seed: for `ties` and `dare` (`merging.Method`).
      start: the parameters that adapters train in full, as they were before training (`init`'s
        `trainable["params"]`): one mapping for all, or one for each where their random heads began
        differently. Needed for what all train in full where the weights do not sum to 1.
      keep: one or more patterns of parameters trained in full that stay as the first adapter has
        them, such as the head of its task.

    Returns:
      An adapter for the `Adapted` of any of the adapters, to apply, merge and save. Rows that only
      pad factors to a rank are zero, and stay so in training.

    Raises:
      ValueError: the bases differ, a setting cannot work, an update has no rank and none is given,
        or a parameter has different shapes.
    """
    if not isinstance(adapters, Sequence) or any(
        not isinstance(each, Sequence) or len(each) != 2 for each in adapters
    ):
        raise ValueError("adapters must be a list of (trainable, frozen), a pair for each adapter")
    for trainable, frozen in adapters:
        require_order(trainable, frozen)
    if not adapters:
        raise ValueError("there are no adapters to combine")
    usual = 0.5 if by == "interpolate" else 1.0
    weights = [usual] * len(adapters) if weights is None else weights
    if np.ndim(weights) != 1:
        raise ValueError(f"weights must be a list, a number for each adapter, not {weights!r}")
    if len(weights) != len(adapters):
        raise ValueError(f"{len(weights)} weights for {len(adapters)} adapters")
    starts = start if isinstance(start, Sequence) else [start or {}] * len(adapters)
    if len(starts) != len(adapters):
        raise ValueError(f"{len(starts)} starts for {len(adapters)} adapters")
    method = Method(by, tuple(map(float, weights)), density, seed)
    if rank is not None:
        require_rank(rank)
    require_one_base([frozen for _, frozen in adapters])
    keep = [keep] if isinstance(keep, str) else keep
    with jax.enable_x64(True):
        return _combined([in_float64(each) for each in adapters], lora, method, rank, starts, keep)


def _combined(
    adapters: list[Adapter],
    lora: Variant,
    method: Method,
    rank: int | None,
    starts: Sequence[Mapping[str, Array]],
    keep: Sequence[str],
) -> Combined:
    everywhere = whole_base([frozen for _, frozen in adapters])
    params, full = {}, paths_in_full(adapters)
    kept = select_paths(keep, full, "parameter that trains in full")
    for path, dtype in full.items():
        count = 1 if path in kept else len(adapters)
        weights = (1.0,) if path in kept else method.coefficients
        found = combined_in_full(path, adapters[:count], weights, starts[:count])
        params[path] = jnp.asarray(found).astype(dtype)
    factors: dict[str, Factored] = {}
    errors: dict[str, np.ndarray] = {}
    for each in everywhere.spec.adapted:
        path = each.use.path
        if path not in params:
            merged = _merged(each, adapters, method)
            factors[path], errors[path] = _of_rank(merged, each, rank)
    trainable, frozen = as_adapter(lora, factors, params, everywhere)
    return Combined(trainable, frozen, errors)


def _merged(placement: Placement, adapters: Sequence[Adapter], method: Method) -> Iterator[Update]:
    """The combined update of each matrix of a weight, in order."""
    path, number = placement.use.path, zlib.crc32(placement.use.path.encode())
    for index, found in updates(path, adapters):
        if all(each is None for each in found):
            yield Factored(*(np.zeros((0, size)) for size in placement.use.matrix))
        else:
            yield method(found, (number, *index))


def _of_rank(
    merged: Iterator[Update], placement: Placement, rank: int | None
) -> tuple[Factored, np.ndarray]:
    """The factors of a weight, stacked, and the error of each of its matrices."""
    use = placement.use
    if rank is None:
        exact = [_with_rank(each, use.path) for each in merged]
        rank, merged = max(1, *(len(each.a) for each in exact)), iter(exact)
    rank = min(rank, *use.matrix)
    cut = [of_rank(each, rank) for each in merged]
    a, b = (
        np.reshape([each[side] for each, _ in cut], (*use.stack_shape, rank, size))
        for side, size in enumerate(use.matrix)
    )
    return Factored(a, b), np.reshape([error for _, error in cut], use.stack_shape)


def _with_rank(update: Update, path: str) -> Factored:
    if not isinstance(update, Factored):
        raise ValueError(f"the combined update of '{path}' has no rank of its own: set the rank")
    return update
