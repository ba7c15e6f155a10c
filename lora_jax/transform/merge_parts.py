"""Merge adapters one layer at a time, so that memory never holds a second dense model."""

import dataclasses
from typing import Any

import jax

from lora_jax.partition import Parts
from lora_jax.transform.placement import (
    Frozen,
    Trainable,
    effective_biases,
    require_order,
    warn_of_doubts,
    weight_of,
)


def merged_parts(trainable: Trainable, frozen: Frozen) -> Parts:
    """What `Adapted.merge` gives, made layer by layer, and before it is rounded.

    Adapted weights are of float32 at least. Warns if training seems to have left something out.
    """
    require_order(trainable, frozen)
    warn_of_doubts(trainable, frozen)
    return _parts(trainable, frozen)


def base_parts(frozen: Frozen) -> Parts:
    """The frozen base without adapters: what is stored quantised is made dense again."""
    bare = [each.bare() for each in frozen.spec.placements]
    spec = dataclasses.replace(frozen.spec, placements=tuple(bare))
    return _parts({"adapters": {}, "params": {}}, dataclasses.replace(frozen, spec=spec, shared=()))


def _parts(trainable: Trainable, frozen: Frozen) -> Parts:
    arrays = {**frozen.base, **trainable["params"]}
    arrays |= effective_biases(arrays, trainable, frozen)
    placements = {each.use.path: each for each in frozen.spec.placements}
    shared = frozen.shared_by(trainable)

    def part(path: str, layer: int | None) -> Any:
        if path not in placements:
            return arrays[path] if layer is None else arrays[path][layer]
        placement = placements[path]
        weight = weight_of(placement, trainable, frozen, None)
        within = layer is not None and weight.is_stacked(0)
        if within:
            weight = jax.tree.map(lambda leaf: leaf[layer], weight.lead(0)).without_lead(0)
        with jax.default_matmul_precision("highest"):  # accelerators round operands otherwise
            array = dataclasses.replace(weight, dtypes=()).dense(shared[placement.variant])
        return array if within or layer is None else array[layer]

    shapes = {path: each for path, each in arrays.items() if path not in placements}
    shapes |= {
        path: jax.ShapeDtypeStruct(each.use.shape, each.use.dtype)
        for path, each in placements.items()
    }
    return Parts({path: shapes[path] for path in frozen.spec.paths if path in shapes}, part)
