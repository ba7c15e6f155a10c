"""What a bank holds of one adapter: arrays in the shapes that all slots have, in NumPy."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.adapters.base_digest import KEY
from lora_jax.compiled.by_numpy import ByNumpy
from lora_jax.files.arrays import to_host
from lora_jax.methods.lowrank import LowRank
from lora_jax.serving.slots import ACTIVE, GAIN, PLAIN_METHOD, Method
from lora_jax.transform import jaxprs
from lora_jax.transform.adapted_weight import Shared, over_stack, with_shared
from lora_jax.transform.placement import Frozen, Placement, Trainable, base_of, group_of
from lora_jax.variant import Base, Factors

Adapter = tuple[Trainable, Frozen]
"""What `init` gave, trained; or what `load_adapter` or `load_peft` gave."""
OF_TRAINING = ("keep", "ratio", "damping", ACTIVE, KEY)
"""Constants that only training reads, or that are applied here."""
MASK = "mask"
ROWS = ("a", "b", "c", "d", "a0", "b0")
"""Factors of `LowRank` methods with one row for each rank."""


class Name(NamedTuple):
    """What an array of an adapter is."""

    part: str
    """`trainable` or `constants` of a weight, `shared trainable` or `shared constants` of a method,
    `params`, or `trains`: whether a slot has a parameter of its own."""
    path: str
    """Of the weight or parameter; empty for what is shared."""
    method: Method | None
    name: str
    depth: int
    """How many stacked axes come before that of the slots."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """An adapter in the arrays that a bank holds of it, in host memory; from `Bank.prepare`."""

    entries: Mapping[Name, np.ndarray]
    placements: tuple[Placement, ...]
    base: Mapping[str, Any]
    """The parameters of the bank's base, which the adapter is of."""
    max_rank: int | None
    """The rank that the factors are filled up to; None for a bank that trains."""

    @property
    def params(self) -> dict[str, np.ndarray]:
        """The parameters that the adapter trains in full, by path."""
        return {name.path: x for name, x in self.entries.items() if name.part == "params"}

    @property
    def nbytes(self) -> int:
        """The bytes of its arrays."""
        return sum(x.nbytes for x in self.entries.values())


def entries(adapter: Adapter, max_rank: int | None) -> dict[Name, np.ndarray]:
    """The arrays of an adapter. Nothing is compiled.

    Args:
      max_rank: the rank that factors are filled up to, as plain LoRA where a method equals it. None
        leaves each method its own factors, which train.

    Raises:
      ValueError: a rank is above `max_rank`, or a number is not finite. The message names the
        weight.
    """
    trainable, frozen = adapter
    shared, found = frozen.shared_by(trainable), {}
    for each in frozen.spec.adapted:
        path, depth = each.use.path, len(each.use.stack)
        method, own = _entry(each, trainable, frozen, shared[each.variant], max_rank)
        found |= {Name(part, path, method, n, depth): x for part, n, x in _parts(own)}
        if method != PLAIN_METHOD:
            common = jax.tree.map(to_host, shared[each.variant])
            common = common._replace(constants=_served(common.constants))
            found |= {Name(f"shared {part}", "", method, n, 0): x for part, n, x in _parts(common)}
    params = trainable["params"].items()
    for path, x in params:
        found[Name("params", path, None, "", 0)] = to_host(x)
        found[Name("trains", path, None, "", 0)] = np.ones((), bool)
    dtypes = {each.use.path: each.use.dtype for each in frozen.spec.adapted}
    for name, x in found.items():
        _require_finite(name, x, dtypes.get(name.path))
    for name, x in found.items():
        if name.method == PLAIN_METHOD and name.name == "a":
            _require_finite_product(name.path, x, found[name._replace(name="b")], dtypes[name.path])
    return found


def _require_finite(name: Name, x: np.ndarray, dtype: Any) -> None:
    """Refuse what would make the rows of other adapters NaN (`lora_jax.serving.grouped_matmul`).

    Plain LoRA is multiplied in the dtype of the weight, in which its factors must be finite.
    """
    if name.method == PLAIN_METHOD and jnp.issubdtype(dtype, jnp.floating):
        with np.errstate(over="ignore"):
            x = x.astype(dtype)
    if jnp.issubdtype(x.dtype, jnp.inexact) and not np.isfinite(x).all():
        raise ValueError(
            f"'{name.path or name.name}': the adapter has numbers that are not finite once they "
            f"are scaled, as {x.dtype}: it has diverged, or its scale is too large"
        )


def _require_finite_product(path: str, a: np.ndarray, b: np.ndarray, dtype: Any) -> None:
    """Refuse plain LoRA with a row of A and a row of B whose product overflows.

    Its outputs would be no numbers, and clients would hear of it.
    """
    largest = (np.abs(x).max(axis=-1, initial=0).astype(float) for x in (a, b))
    if (np.multiply(*largest) > float(jnp.finfo(dtype).max)).any():
        raise ValueError(
            f"'{path}': the product of the adapter's A and B is not finite, as {dtype}: it has "
            "diverged, or its scale is too large"
        )


def _parts(factors: Factors) -> Iterator[tuple[str, str, np.ndarray]]:
    for part, arrays in factors._asdict().items():
        for name, x in arrays.items():
            yield part, name, x


def _entry(
    placement: Placement, trainable: Trainable, frozen: Frozen, shared: Shared, max_rank: int | None
) -> tuple[Method, Factors]:
    """The method of a weight and its factors, with the constant `active` for each matrix."""
    path, variant = placement.use.path, group_of(placement)
    factors = Factors(trainable["adapters"][path], frozen.constants[path])
    stack = placement.use.stack_shape
    active = np.broadcast_to(to_host(factors.constants.get(ACTIVE, np.True_)), stack)
    present: dict[str, Any] = {ACTIVE: active}
    if max_rank is not None:
        equal = _as_lora(placement, frozen.base[path], factors, shared)
        if equal is not None and equal[0].shape[-2] <= max_rank:
            *both, gain = equal
            a, b = (_rows(_where(active, x), max_rank, path) for x in both)
            plain: dict[str, Any] = {"a": a, "b": b}
            if gain is not None:
                present[GAIN] = np.where(active[..., None], gain, np.ones((), gain.dtype))
            return PLAIN_METHOD, Factors(plain, present)
    mine, method = jax.tree.map(to_host, factors), Method(variant)
    parts: list[dict[str, Any]] = [dict(mine.trainable), _served(mine.constants)]
    if isinstance(variant, LowRank):
        rank = variant.rank
        if max_rank is not None and variant.rows_are_terms:
            rank, mask = max_rank, parts[1].pop(MASK, None)
            parts = [
                {n: _masked_rows(x, mask, rank, path) if n in ROWS else x for n, x in part.items()}
                for part in parts
            ]
        rows = {n: x.shape[-2] if n in ROWS else 0 for part in parts for n, x in part.items()}
        if max_rank is not None:
            _require_rank(max(rows.values()), max_rank, path)
        method = Method(_as_served(variant, rank), tuple(sorted(rows.items())))
    return method, Factors(parts[0], parts[1] | present)


def _masked_rows(x: Any, mask: np.ndarray | None, rank: int, path: str) -> np.ndarray:
    return _rows(x if mask is None else x * mask[..., None], rank, path)


def _served(constants: Mapping[str, Any]) -> dict[str, Any]:
    return {n: x for n, x in constants.items() if n not in OF_TRAINING}


def _as_served(variant: LowRank, rank: int) -> LowRank:
    """The method without settings that only `init` and training read: adapters share a group."""
    kept = ("rank", "scale")
    begun = {f.name: f.default for f in dataclasses.fields(LowRank) if f.name not in kept}
    return dataclasses.replace(variant, **begun, rank=rank)


def _as_lora(
    placement: Placement, value: Any, factors: Factors, shared: Shared
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | None:
    """A, B and the outputs' factor of every matrix, by NumPy; None if the method has none."""
    jaxpr, consts, form = jaxprs.trace_once(_equal, placement, value, factors, shared)
    if not jax.tree.leaves(form):
        return None
    found = ByNumpy(wide=False)(jaxpr, consts, jax.tree.leaves((value, factors, shared)))
    return jax.tree.unflatten(jax.tree.structure(form), found)


@functools.partial(jax.jit, static_argnums=0)
def _equal(placement: Placement, value: Any, factors: Factors, shared: Shared) -> Any:
    def one(base: Base, factors: Factors) -> Any:
        return group_of(placement).as_rescaled_lora(base, with_shared(factors, shared))

    return over_stack(one, len(placement.use.stack))(base_of(placement, value), factors)


def _rows(x: Any, max_rank: int, path: str) -> np.ndarray:
    """Factors with zeros up to `max_rank` rows."""
    _require_rank(x.shape[-2], max_rank, path)
    if x.shape[-2] == max_rank:
        return x
    padded = np.zeros((*x.shape[:-2], max_rank, x.shape[-1]), x.dtype)
    padded[..., : x.shape[-2], :] = x
    return padded


def _require_rank(rank: int, max_rank: int, path: str) -> None:
    if rank > max_rank:
        raise ValueError(
            f"'{path}' has rank {rank}, and the bank max_rank={max_rank}: make it larger "
            f"(of a server: --max_rank={rank})"
        )


def _where(active: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Factors of each matrix of a stack, zero where it has no adapter."""
    return x if active.all() else np.where(active[..., None, None], x, 0)
