"""Arrays that all matrices of a variant share (`Variant.init_shared`), trained or not."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.transform.adapted_weight import Shared
from lora_jax.transform.placement import AdaptedSpec, Frozen, Placement, Trainable, fold_path
from lora_jax.variant import Factors, Variant, wide


def init_shared(key: Array, spec: AdaptedSpec) -> list[Shared]:
    """The arrays that each variant's matrices share, made from a key that depends on its class."""
    return [
        shared_arrays(fold_path(key, type(variant).__name__), variant, spec.placed(paths))
        for variant, paths in spec.groups().items()
    ]


def shared_arrays(key: Array, variant: Variant, placements: Iterable[Placement]) -> Shared:
    """The arrays that a variant's matrices share, made from the shapes of all of them."""
    placements = list(placements)
    dtypes = [wide(jnp.dtype(each.use.dtype)) for each in placements]
    widest = max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)
    shapes = [shape for each in placements for shape in each.matrices]
    return shared_factors(variant, variant.init_shared(key, shapes, widest))


def shared_factors(variant: Variant, arrays: dict[str, Array]) -> Shared:
    """What `init_shared` gives, in what trains (`Variant.shared_trainable`) and constants.

    Raises:
      ValueError: something that is to train is not there.
    """
    names = variant.shared_trainable
    if lacking := [name for name in names if name not in arrays]:
        raise ValueError(f"{variant}: init_shared gives no '{lacking[0]}' of shared_trainable")
    constants = {name: x for name, x in arrays.items() if name not in names}
    return Factors({name: arrays[name] for name in names}, constants)


def count_shared(variant: Variant, shapes: Sequence[tuple[int, int]]) -> int:
    """How many numbers are trained that matrices of these shapes share."""
    start = functools.partial(variant.init_shared, shapes=shapes, dtype=jnp.float32)
    shared = shared_factors(variant, jax.eval_shape(start, jax.random.key(0)))
    return sum(math.prod(leaf.shape) for leaf in shared.trainable.values())


def with_shared_arrays(
    trainable: Trainable, frozen: Frozen, shared: Iterable[Shared]
) -> tuple[Trainable, Frozen]:
    """The same with these arrays that adapters share, in the order of `spec.groups()`."""
    shared = list(shared)
    parts = {name: part for name, part in trainable.items() if name != "shared"}
    trained = {str(n): each.trainable for n, each in enumerate(shared) if each.trainable}
    constants = tuple(each.constants for each in shared)
    parts |= {"shared": trained} if trained else {}
    return parts, dataclasses.replace(frozen, shared=constants)


def split_shared(
    variant: Variant, named: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """What is named for each matrix, {path: {name: ...}}, without and with what all of them share.

    What is named for shared arrays is the same under every path.
    """
    names = variant.shared_trainable
    own = {p: {n: x for n, x in each.items() if n not in names} for p, each in named.items()}
    return own, {n: x for each in named.values() for n, x in each.items() if n in names}
