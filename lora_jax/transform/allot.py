"""Give each matrix its own settings by what was seen of all of them (`Variant.allot`)."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from jax.core import Tracer

from lora_jax.files.arrays import to_host
from lora_jax.statistics import Seen
from lora_jax.transform.placement import AdaptedSpec, Placement, place, variants_of
from lora_jax.variant import Variant


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
