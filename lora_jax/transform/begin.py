"""What `init` makes: which weights are adapted, what each is stored as, ranks and first factors."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from lora_jax.base import Seen, Uses
from lora_jax.files.arrays import to_host
from lora_jax.partition import select_paths
from lora_jax.quantization.quantize import Storage, require_storable
from lora_jax.transform import target_patterns
from lora_jax.transform.adapted_weight import over_stack
from lora_jax.transform.placement import (
    AdaptedSpec,
    Placement,
    Unadapted,
    aligned,
    base_of,
    place,
    trains,
    variants_of,
    with_biases,
)
from lora_jax.transform.target_patterns import Pattern, Rule
from lora_jax.variant import Base, Factors, Variant


def choose(
    rules: Sequence[Rule],
    also_train: Sequence[str],
    storage: Sequence[tuple[Pattern, Storage]],
    uses: Uses,
) -> tuple[list[Placement], list[str]]:
    """The weights that are adapted or quantised, and the parameters that are trained in full."""
    also = select_paths(also_train, uses, "parameter")
    explicit = [rule for rule in rules if rule[0] not in target_patterns.GROUPS]
    named = target_patterns.assign(explicit, uses) if explicit else {}
    if both := [path for path in also if path in named]:
        raise ValueError(f"'{both[0]}' is both a target and in also_train; choose one")
    assigned = {p: v for p, v in target_patterns.assign(rules, uses).items() if p not in also}
    adapting = {path: target_patterns.adapting(variant) for path, variant in assigned.items()}
    adapted = {path for path, variant in adapting.items() if variant}
    trained = [
        path
        for path, use in uses.items()
        if path not in adapted and (path in also or trains(use, rules, assigned))
    ]
    for path in trained:
        if not uses[path].is_real:
            raise ValueError(f"'{path}' cannot be trained: its dtype is {uses[path].dtype}")
    stored = _storages(storage, uses, trained)
    placements = [
        place(use, adapting.get(path), stored.get(path))
        for path, use in uses.items()
        if path in adapted or path in stored
    ]
    if not adapted and not trained:
        names = ", ".join(dict.fromkeys(type(v).__name__ for _, v in rules if v))
        why = f"{names} adapts nothing" if names else "all targets map to None"
        raise ValueError(f"nothing would train: {why}; name parameters in also_train")
    return with_biases(placements, uses), trained


def _storages(
    rules: Sequence[tuple[Pattern, Storage]], uses: Uses, trained: Sequence[str]
) -> dict[str, Storage]:
    """The storage of each quantised weight; parameters trained in full are left out."""
    found: dict[str, Any] = dict(target_patterns.assign(list[Any](rules), uses))
    explicit: list[Any] = [rule for rule in rules if rule[0] not in target_patterns.GROUPS]
    for path in target_patterns.assign(explicit, uses) if explicit else {}:
        if path in trained:
            raise ValueError(f"'{path}' is trained in full, and cannot be quantised")
    for path, storage in found.items():
        if isinstance(storage, tuple):
            raise ValueError(
                f"'{path}': the layers of a stacked weight must be stored in the same way"
            )
        if not uses[path].is_real:
            raise ValueError(f"'{path}' cannot be quantised: its dtype is {uses[path].dtype}")
    return {path: storage for path, storage in found.items() if path not in trained}


def stored(placement: Placement, value: Array) -> Any:
    """A weight as it is to be stored: unchanged, or as a dict of quantised arrays."""
    storage, use = placement.storage, placement.use
    if storage is None:
        return value
    require_storable(use.path, value)
    base = unquantized(placement, value)

    def restored(matrix: Array) -> Array:
        return storage.load(storage.store(matrix), use.matrix, jnp.dtype(use.dtype))

    def store(variant: Variant | None, one: Base) -> Any:
        return storage.store((variant or Unadapted()).to_store(one, restored))

    if not isinstance(placement.layers, tuple):
        return over_stack(functools.partial(store, placement.variant), len(use.stack))(base)
    each = [
        over_stack(functools.partial(store, variant), len(use.stack) - 1)(_row(base, index))
        for index, variant in enumerate(placement.layers)
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def unquantized(placement: Placement, value: Array) -> Base:
    """A weight as it came, whether it is to be quantised or not."""
    return base_of(dataclasses.replace(placement, storage=None), value)


def init_factors(
    key: Array, placement: Placement, value: Any, seen: Seen | None, original: Base | None
) -> Factors:
    use = placement.use
    base = dataclasses.replace(base_of(placement, value), seen=seen, original=original)
    keys = jax.random.split(key, use.stack_shape) if use.stack else key
    if not isinstance(placement.layers, tuple):
        whole = over_stack(placement.variant.init, len(use.stack))(keys, base)
        return _checked(placement.variant, whole)
    # Layers differ: their factors are made one by one, then stacked.
    like = aligned(placement.layers)
    remaining = iter(like)
    each = []
    for index, variant in enumerate(placement.layers):
        wanted = like[0] if variant is None else next(remaining)
        factors = over_stack(wanted.init, len(use.stack) - 1)(keys[index], _row(base, index))
        factors = _checked(wanted, factors)
        if None in placement.layers:
            factors.constants["active"] = jnp.full(use.stack_shape[1:], variant is not None)
        each.append(factors)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def _checked(variant: Variant, factors: Any) -> Factors:
    """What a variant's `init` gave, if that is what it has to give."""
    if not isinstance(factors, Factors):
        given = type(factors).__name__
        raise ValueError(
            f"{type(variant).__name__}.init must give Factors(trainable, constants), not {given}"
        )
    return factors


def _row(base: Base, index: int) -> Base:
    """One layer of a stack."""
    return jax.tree.map(lambda leaf: leaf[index], base)


def allotted(spec: AdaptedSpec, seen: Mapping[str, Seen]) -> AdaptedSpec:
    """The same weights, with the variant of each matrix that its method gives it.

    Where only shapes are known of what was seen, all keep the settings that they have.

    Raises:
      ValueError: nothing was seen of a matrix, or matrices that share the first of several stacked
        axes would have different ranks.
    """
    matrices: dict[Variant, list[tuple[str, int]]] = {}
    for each in spec.adapted:
        if any(variant.allots for variant in variants_of(each.layers)):
            for index, variant in enumerate(_variants(each)):
                if variant is not None and variant.allots:
                    matrices.setdefault(variant, []).append((each.use.path, index))
    if not matrices or any(isinstance(x, Tracer) for x in jax.tree.leaves(dict(seen))):
        return spec
    placed = {each.use.path: each for each in spec.placements}
    found = {path: _variants(placed[path]) for path in {p for w in matrices.values() for p, _ in w}}
    for variant, where in matrices.items():
        if lacking := next((path for path, _ in where if path not in seen), None):
            raise ValueError(f"'{lacking}': its inputs are not among what was seen")
        parts = [_matrix(placed[path], seen[path], index) for path, index in where]
        shapes = [placed[path].use.matrix for path, _ in where]
        for (path, index), own in zip(where, variant.allot(parts, shapes), strict=True):
            found[path][index] = own
    placements = [
        _replaced(each, found[each.use.path]) if each.use.path in found else each
        for each in spec.placements
    ]
    kept = tuple(each for each in placements if each.adapts or each.storage is not None)
    return dataclasses.replace(spec, placements=kept)


def _variants(placement: Placement) -> list[Variant | None]:
    """The variant of each matrix of a weight, in the order of its stacked axes."""
    layers, stack = placement.layers, placement.use.stack_shape
    if not isinstance(layers, tuple):
        return [layers] * int(np.prod(stack))
    return [variant for variant in layers for _ in range(int(np.prod(stack[1:])))]


def _matrix(placement: Placement, seen: Seen, index: int) -> Seen:
    """What was seen of one matrix of a weight."""
    place = np.unravel_index(index, placement.use.stack_shape)
    return jax.tree.map(lambda leaf: to_host(leaf)[place], seen)


def _replaced(placement: Placement, variants: list[Variant | None]) -> Placement:
    use = placement.use
    below = int(np.prod(use.stack_shape[1:]))
    rows = [variants[i : i + below] for i in range(0, len(variants), below)]
    if any(each != row[0] for row in rows for each in row):
        raise ValueError(
            f"'{use.path}': only the first of its stacked axes {use.stack_shape} can have several "
            "ranks; leave EVA's rho out"
        )
    first, *rest = layers = tuple(row[0] for row in rows)
    same = all(each == first for each in rest)
    return place(use, first if same else layers, placement.storage)
