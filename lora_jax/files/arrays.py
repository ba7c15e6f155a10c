"""Leaves of saved trees: their types as text, their bits, their digests."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils


def is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def type_name(leaf: Any) -> str:
    """A leaf's dtype and shape as text, for example `float32[4,8]` or `key<fry>[]`."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return f"{dtype}[{','.join(map(str, np.shape(leaf)))}]"


LARGEST = 2**28
"""The most bytes of an array that `to_host` gathers at once; larger ones are gathered in slices."""


def to_host(array: Any) -> np.ndarray:
    """The whole array in this process's memory; of several processes, every one must call this."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    if array.nbytes > LARGEST and array.ndim > 1 and len(array) > 1:
        return np.stack([to_host(array[index]) for index in range(len(array))])
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def copies(arrays: Sequence[jax.Array], wholes: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yield this process's copies of `arrays` in float64: all first replicas, then all second ones.

    Args:
      wholes: the same arrays from `to_host`; they fill in the parts that this process lacks.
    """
    shards = [array.addressable_shards for array in arrays]
    for number in sorted({shard.replica_id for each in shards for shard in each}):
        found = [np.array(whole, np.float64) for whole in wholes]
        for whole, each in zip(found, shards, strict=True):
            for shard in each:
                if shard.replica_id == number:
                    whole[shard.index] = shard.data
        yield found


def array_digest(array: Any) -> str:
    whole = np.ascontiguousarray(to_host(array))
    return hashlib.sha256(whole.reshape(-1).view(np.uint8).data).hexdigest()  # no copy
