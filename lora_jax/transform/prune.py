"""Take out the rows of factors that a method has dropped, and tell the rank of each matrix."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lora_jax.transform.placement import (
    Frozen,
    Placement,
    Trainable,
    grouped,
    warn_of_doubts,
    with_shared_arrays,
)
from lora_jax.transform.target_patterns import SomeLayers
from lora_jax.variant import Factors, Pruned


def prune(trainable: Trainable, frozen: Frozen, states: Sequence[Any]) -> tuple[Trainable, Frozen]:
    """Take out what a method has dropped for good (AdaLoRA's ranks); the effect stays the same.

    Arrays get smaller, so programs for them compile again. An adapter with nothing left is removed.
    Adapters of methods that drop nothing stay as they are. Warns if training seems to have left
    something out (`update`).

    Args:
      trainable: the trainables after training; not traced.
      frozen: the frozen part that belongs to them.
      states: the result of the last `adapted.update`.

    Returns:
      The new trainables and frozen part, for the same `adapted`.
    """
    warn_of_doubts(trainable, frozen)
    smaller: dict[str, Pruned | None] = {}
    groups = grouped(trainable, frozen)
    for state, (variant, factors) in zip(states, groups, strict=True):
        pruned_ones = variant.prune(state, factors)
        if pruned_ones and variant.shared_trainable:
            raise ValueError(f"{variant}: adapters that share what trains cannot be pruned")
        smaller |= pruned_ones
    adapters, constants = dict(trainable["adapters"]), dict(frozen.constants)
    for path, pruned in smaller.items():
        del adapters[path], constants[path]
        if pruned is not None:
            adapters[path], constants[path] = pruned.factors
    replaced = [
        _replaced(each, smaller[each.use.path]) if each.use.path in smaller else each
        for each in frozen.spec.placements
    ]
    placements = tuple(each for each in replaced if each.adapts or each.storage is not None)
    spec = dataclasses.replace(frozen.spec, placements=placements)
    known, none = frozen.shared_by_group(trainable), Factors({}, {})
    shared = [known.get(variant, none) for variant in spec.groups()]
    smaller_frozen = dataclasses.replace(frozen, constants=constants, spec=spec)
    return with_shared_arrays({**trainable, "adapters": adapters}, smaller_frozen, shared)


def _replaced(placement: Placement, pruned: Pruned | None) -> Placement:
    if pruned is None:
        return placement.bare()
    variant, layers = pruned.variant, pruned.variant
    if isinstance(placement.layers, tuple):
        layers = tuple(None if each is None else variant for each in placement.layers)
    if isinstance(placement.variant, SomeLayers):
        variant = SomeLayers(variant)
    return dataclasses.replace(placement, variant=variant, layers=layers, ranks=pruned.ranks)


def ranks(trainable: Trainable, frozen: Frozen) -> dict[str, np.ndarray]:
    """The rank of each matrix by path, integers of the shape of the weight's stack.

    It is what `prune` left, or would leave judging by the factors alone, or else the variant's
    setting. Layers that are left out have rank 0. Adapters without ranks are not listed.
    """
    smaller: dict[str, Pruned | None] = {}
    for variant, factors in grouped(trainable, frozen):
        smaller |= variant.prune(None, factors)
    found = {}
    for each in frozen.spec.adapted:
        path, stack = each.use.path, each.use.stack_shape
        if path in smaller:
            pruned = smaller[path]
            numbers = 0 if pruned is None else np.reshape(pruned.ranks, stack)
        elif each.ranks is not None:
            numbers = np.reshape(each.ranks, stack)
        elif isinstance(each.layers, tuple):
            own = [getattr(layer, "rank", 0) for layer in each.layers]
            numbers = np.reshape(own, (-1, *[1] * (len(stack) - 1)))
        elif (numbers := getattr(each.layers, "rank", None)) is None:
            continue
        found[path] = np.broadcast_to(np.asarray(numbers, int), stack).copy()
    return found
