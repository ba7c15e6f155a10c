"""Factors of given updates as an adapter of plain LoRA, like one that was trained."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.arithmetic.updates import Factored
from lora_jax.methods.lowrank import LowRank
from lora_jax.transform.placement import Frozen, Placement, Trainable
from lora_jax.variant import Base, Factors, Variant, wide


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
      frozen: the whole base, and how each of these weights is used (`one_base.whole_base`).

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
    begun = _begun(placement.variant, dtype)
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
def _begun(variant: Variant, dtype: Any) -> Factors:
    """LoRA's factors of a small matrix: its constants depend on settings alone."""
    rank = getattr(variant, "rank", 1)
    return variant.init(jax.random.key(0), Base(jnp.zeros((rank, rank), dtype), "io"))
