"""What trains in a bank: which numbers, and the adapters that are made of them."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.files.arrays import to_host
from lora_jax.serving.bank_arrays import Held, Key, key_of
from lora_jax.serving.entries import Adapter, Name, entries
from lora_jax.serving.slots import ACTIVE

PARTS = ("trainable", "shared trainable", "params")


def trainable(held: Held) -> dict[Key, Array]:
    """The arrays in which something trains."""
    return {key: x for key, x in held.arrays.items() if key.part in PARTS}


def with_trainable(held: Held, new: Mapping[Key, Array]) -> Held:
    """The same with other numbers where slots train them."""
    arrays = dict(held.arrays)
    for key, x in new.items():
        arrays[key] = jnp.where(_trains(held, key), x, arrays[key])
    return dataclasses.replace(held, arrays=arrays)


def _trains(held: Held, key: Key) -> Array:
    """Which slots, and matrices of a stack, train an array; of its shape, or with axes of one."""
    if key.part == "params":
        found = held.arrays[key._replace(part="trains")]
    elif key.path:
        found = held.arrays[key._replace(part="constants", name=ACTIVE)]
    else:  # shared by the matrices of a method, in all paths
        there = [x for k, x in held.arrays.items() if (k.method, k.name) == (key.method, ACTIVE)]
        found = jnp.stack([x.any(tuple(range(x.ndim - 1))) for x in there]).any(0)
    missing = held.arrays[key].ndim - found.ndim
    return found.reshape(*found.shape, *[1] * missing)


def trained(held: Held, slot: int, begun: Adapter) -> Adapter:
    """The adapter of a slot, in the structure of the one that was put there.

    Raises:
      ValueError: another adapter is in the slot.
    """
    found, (own, frozen) = entries(begun, None), begun
    _require_in_slot(held, slot, found)
    methods = {name.path: name.method for name in found if name.name == ACTIVE}

    def of_slot(name: Name, like: Array) -> Array:
        return _at(held, slot, key_of(name, held.methods)).astype(like.dtype)

    def arrays(part: str, path: str, of: str, like: Mapping[str, Array]) -> dict[str, Array]:
        depth = {name.path: name.depth for name in found if name.part == part}
        names = [Name(part, path, methods[of], n, depth[path]) for n in like]
        return {name.name: of_slot(name, like[name.name]) for name in names}

    mine = {
        "adapters": {
            path: arrays("trainable", path, path, x) for path, x in own["adapters"].items()
        },
        "params": {
            path: of_slot(Name("params", path, None, "", 0), x) for path, x in own["params"].items()
        },
    }
    first = [paths[0] for paths in frozen.spec.groups().values()]
    shared = {
        number: arrays("shared trainable", "", first[int(number)], x)
        for number, x in own.get("shared", {}).items()
    }
    return {**mine, **({"shared": shared} if shared else {})}, frozen


def _at(held: Held, slot: int, key: Key) -> Array:
    """What a slot has of an array."""
    return jax.lax.index_in_dim(held.arrays[key], slot, key.depth, keepdims=False)


def _require_in_slot(held: Held, slot: int, found: Mapping[Name, np.ndarray]) -> None:
    """Raise a ValueError unless an adapter with these arrays was put into a slot."""

    def other(path: str) -> ValueError:
        where = f" on '{path}'" if path else ""
        return ValueError(
            f"slot {slot} has not this adapter{where}: give the one that was put there"
        )

    keys = set()
    for name, x in found.items():
        if name.part in PARTS:
            continue
        if name.method not in (None, *held.methods):
            raise other(name.path)
        keys.add(key := key_of(name, held.methods))
        if key not in held.arrays:
            raise other(name.path)
        there = to_host(_at(held, slot, key))
        if there.shape != x.shape or not np.array_equal(there, x.astype(there.dtype)):
            raise other(name.path)
    for key in held.arrays.keys() - keys:
        if (key.name == ACTIVE or key.part == "trains") and to_host(_at(held, slot, key)).any():
            raise other(key.path)
