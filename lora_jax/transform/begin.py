"""What each weight begins with: the arrays that it is stored as, and the factors of its adapter."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.quantization.quantize import require_storable
from lora_jax.statistics import Seen
from lora_jax.transform.adapted_weight import over_stack
from lora_jax.transform.placement import Placement, Unadapted, aligned, base_of
from lora_jax.variant import Base, Factors, Variant


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
