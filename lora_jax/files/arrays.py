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
    """As `float32[4,8]` or `key<fry>[]`."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return f"{dtype}[{','.join(map(str, np.shape(leaf)))}]"


LARGEST = 2**28
"""Bytes of an array that every device gets whole on its way to a host; more goes in slices."""


def to_host(array: Any) -> np.ndarray:
    """The whole array, in this process's memory; of several processes, all have to ask."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    if array.nbytes > LARGEST and array.ndim > 1 and len(array) > 1:
        return np.stack([to_host(array[index]) for index in range(len(array))])
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def copies(arrays: Sequence[jax.Array], wholes: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """What this process's devices hold of arrays, in float64: the first copies, then the second.

    Args:
      wholes: the same arrays by `to_host`, for the parts that are not here.
    """
    shards = [array.addressable_shards for array in arrays]
    for number in sorted({shard.replica_id for each in shards for shard in each}):
        found = [np.array(whole, np.float64) for whole in wholes]
        for whole, each in zip(found, shards, strict=True):
            for shard in each:
                if shard.replica_id == number:
                    whole[shard.index] = shard.data
        yield found


def digest(array: Any) -> str:
    return hashlib.sha256(to_host(array).tobytes()).hexdigest()


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
