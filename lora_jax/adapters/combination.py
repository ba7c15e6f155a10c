"""Combine adapters of one base into a plain LoRA adapter: `combine_adapters(adapters, lora)`."""

import dataclasses
import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.adapters.base_digest import OtherBaseError, base_digests, require_base
from lora_jax.adapters.merging import Method
from lora_jax.adapters.updates import (
    Adapter,
    Factored,
    Update,
    in_float64,
    of_rank,
    placements,
    updates,
)
from lora_jax.methods.checks import require_rank
from lora_jax.methods.lowrank import LowRank
from lora_jax.partition import select_paths
from lora_jax.transform.placement import (
    Frozen,
    Placement,
    Trainable,
    effective_biases,
    require_order,
    weight_of,
    with_shared_arrays,
)
from lora_jax.variant import Base, Factors, Variant, wide


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


def paths_in_full(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """The dtypes of the parameters that any adapter trains in full, or whose bias it changes."""
    found: dict[str, Any] = {}
    for trainable, frozen in adapters:
        arrays = {**frozen.base, **trainable["params"]}
        biases = [each.bias for each in frozen.spec.placements if each.bias]
        found |= {path: arrays[path].dtype for path in [*trainable["params"], *biases]}
    return found


def combined_in_full(
    path: str,
    adapters: Sequence[Adapter],
    coefficients: Sequence[float],
    starts: Sequence[Mapping[str, Any]],
) -> np.ndarray:
    """P = S_1 + sum c_i (P_i - S_i), from the values S_i before training to the values P_i.

    Heads may begin at random, each run's at its own. Where the coefficients sum to 1, the result is
    the mean sum c_i P_i, whatever the starts.

    Args:
      adapters: results of `updates.in_float64`. P_i is the value that the model of one acts with.
      starts: for each adapter, S_i of parameters that it trains in full; others are in its base.

    Raises:
      ValueError: shapes differ, or an S_i matters, and is not known.
    """
    values = [_effective(path, *each) for each in adapters]
    shapes = [list(each.shape) for each in values]
    if any(each != shapes[0] for each in shapes):
        raise ValueError(
            f"'{path}' has other shapes in other adapters, {', '.join(map(str, shapes))}; `keep` "
            "leaves it as the first has it"
        )
    total = sum(c * value for c, value in zip(coefficients, values, strict=True))
    if abs(1 - sum(coefficients)) < 1e-6:
        return np.asarray(total)
    begun = [
        _begun(path, frozen, start, adapters)
        for (_, frozen), start in zip(adapters, starts, strict=True)
    ]
    rest = begun[0] - sum(c * each for c, each in zip(coefficients, begun, strict=True))
    return np.asarray(total + rest)


def _begun(
    path: str, own: Frozen, start: Mapping[str, Any], adapters: Sequence[Adapter]
) -> np.ndarray:
    """The value of a parameter before any training of an adapter."""
    if path in start and path not in own.base:
        return np.asarray(start[path], np.float64)
    for frozen in (own, *(each for _, each in adapters)):
        if path in frozen.base:
            return _stored(path, frozen)
    raise ValueError(
        f"'{path}' is trained in full by every adapter, and weights that do not sum to 1 need "
        "its value before training; `start` gives it"
    )


def _effective(path: str, trainable: Any, frozen: Frozen) -> np.ndarray:
    """The value that the model acts with: trained, adapted, or the base's."""
    arrays = {**frozen.base, **trainable["params"]}
    if each := next((each for each in frozen.spec.placements if each.bias == path), None):
        spec = dataclasses.replace(frozen.spec, placements=(each,))
        one = {path: jnp.asarray(arrays[path], jnp.float64)}
        shared = frozen.shared_by(trainable)[each.variant]
        alone = with_shared_arrays(trainable, dataclasses.replace(frozen, spec=spec), [shared])
        return np.asarray(effective_biases(one, *alone)[path])
    if path in trainable["params"]:
        return np.asarray(trainable["params"][path], np.float64)
    if each := placements(frozen).get(path):
        return _dense(each, trainable, frozen)
    return _stored(path, frozen)


def _stored(path: str, frozen: Frozen) -> np.ndarray:
    """A parameter of the base."""
    quantised = {each.use.path: each for each in frozen.spec.placements if each.storage}
    if path not in quantised:
        return np.asarray(frozen.base[path], np.float64)
    return _dense(quantised[path].bare(), {"adapters": {}}, frozen)


def _dense(placement: Any, trainable: Any, frozen: Frozen) -> np.ndarray:
    """A whole weight in the model's own layout, in float64."""
    weight = weight_of(placement, trainable, frozen, None)
    wide = dataclasses.replace(
        weight, base=weight.base.astype(jnp.float64), dtypes=(jnp.dtype(jnp.float64),)
    )
    return np.asarray(
        wide.dense(frozen.shared_by(trainable).get(placement.variant, Factors({}, {})))
    )


def require_one_base(frozen: Sequence[Frozen], names: Sequence[str] | None = None) -> None:
    """Raise a ValueError, in one line, unless all adapters have the same base.

    Parameters that one of them trains in full are in the base of the others only.

    Args:
      names: of the adapters, for the message; None: their numbers.
    """
    names = names or [f"adapter {number}" for number in range(1, len(frozen) + 1)]
    first, known = frozen[0], base_digests(frozen[0])
    for name, other in zip(names[1:], frozen[1:], strict=True):
        if {*other.spec.paths} != {*first.spec.paths}:
            raise ValueError(f"{name} belongs to a model with other parameters than {names[0]}")
        trained = {*first.spec.paths} - (first.base.keys() & other.base.keys())
        try:
            require_base(known, base_digests(other), trained, names[0])
        except OtherBaseError as error:
            raise ValueError(f"{error.problem}; here is {name}") from None


def whole_base(frozen: Sequence[Frozen]) -> Frozen:
    """All parameters that any of them keeps frozen, and each weight that any adapts or quantises.

    A weight is placed as the first that adapts it, or else quantises it, has it.
    """
    base, placed = {}, {}
    for each in reversed(frozen):
        base |= each.base
        placed |= {one.use.path: one for one in each.spec.placements if not one.adapts}
    for each in reversed(frozen):
        placed |= {one.use.path: one for one in each.spec.adapted}
    spec = frozen[0].spec
    inside = tuple(placed[path] for path in spec.paths if path in placed)
    full = {use.path: use for each in frozen for use in each.spec.full}
    return Frozen(base, {}, dataclasses.replace(spec, placements=inside, full=(*full.values(),)))


def as_adapter(
    lora: Variant,
    factors: Mapping[str, Factored],
    params: Mapping[str, Array],
    frozen: Frozen,
) -> tuple[Trainable, Frozen]:
    """The adapter with W' = W + A^T B for each weight of `factors`, and `params` trained in full.

    Args:
      lora: plain LoRA; its rank and alpha become the factors' own.
      factors: A (*stack, rank, in) and B (*stack, rank, out) by path.
      frozen: the whole base, and how each of these weights is used (`whole_base`).

    Raises:
      ValueError: `lora` is another method.
    """
    placed, found = [], {}
    for each in frozen.spec.placements:
        path = each.use.path
        if path in factors:
            placed.append(_of_lora(each, lora, factors[path].a.shape[-2]))
            found[path] = _filled(placed[-1], factors[path])
        elif each.storage is not None and path not in params:
            placed.append(each.bare())
    spec = dataclasses.replace(frozen.spec, placements=tuple(placed))
    base = {path: each for path, each in frozen.base.items() if path not in params}
    constants = {path: each.constants for path, each in found.items()}
    made = Frozen(base, constants, spec, tuple({} for _ in spec.groups()))
    adapters = {path: each.trainable for path, each in found.items()}
    return {"adapters": adapters, "params": dict(params)}, made


def _of_lora(placement: Placement, lora: Variant, rank: int) -> Placement:
    if not isinstance(lora, LowRank) or not lora.additive:
        raise ValueError(f"{lora} is not plain LoRA, which combined adapters are")
    begins = LowRank.initialization  # one without an effect: its factors are replaced
    own = {"rank": rank, "alpha": float(rank), "max_rank": None, "initialization": begins}
    variant = dataclasses.replace(lora, **own)
    return dataclasses.replace(placement, variant=variant, layers=variant, ranks=None, bias=None)


def _filled(placement: Placement, factored: Factored) -> Factors:
    """LoRA's factors of a weight, with these numbers."""
    dtype = wide(jnp.dtype(placement.use.dtype))
    begun = _initial(placement.variant, dtype)
    if begun.trainable.keys() != {"a", "b"}:
        raise ValueError(f"{placement.variant} is not plain LoRA, which combined adapters are")
    stack = placement.use.stack_shape
    constants = {
        name: jnp.asarray(np.broadcast_to(each, (*stack, *each.shape)))
        for name, each in begun.constants.items()
    }
    b = factored.b / float(begun.constants["scale"])
    return Factors({"a": jnp.asarray(factored.a, dtype), "b": jnp.asarray(b, dtype)}, constants)


@functools.lru_cache(maxsize=64)  # the weights of a model share a few ranks
def _initial(variant: Variant, dtype: Any) -> Factors:
    """LoRA's factors of a small matrix: its constants depend on settings alone."""
    rank = getattr(variant, "rank", 1)
    return variant.init(jax.random.key(0), Base(jnp.zeros((rank, rank), dtype), "io"))
