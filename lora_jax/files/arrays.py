"""Leaves of saved trees: their types as text, their bits, their digests and checksums.

A checksum does not depend on how devices and processes divide an array: every element is mixed
with its position, and all results are added up, in any order. Each device therefore reduces its own
part, and only the sums are transferred.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
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


DIGITS = 16
SEEDS = np.uint32(0x6A09E667), np.uint32(0xBB67AE85)


def checksum(array: Any) -> Any:
    """Two unsigned 32-bit sums over all elements, (2,), of a NumPy or a JAX array.

    The sums of a JAX array stay on its devices, replicated. They are computed asynchronously:
    reading them waits.

    An element of up to 64 bits gives two words, low and high, and its position gives two keys. An
    invertible function maps these to two new words. If one element changes, at least one of its new
    words changes, and so does that word's sum modulo 2^32. A change of a single element is
    therefore always found. (A complex number is two elements.) Any other change goes unnoticed with
    a probability of 2^-64. Words are mixed by the finaliser of MurmurHash3 (Appleby, public
    domain), which is invertible too.

    Raises:
      ValueError: elements that are not numbers of at most 64 bits, such as text.
    """
    return _jitted(array) if isinstance(array, jax.Array) else _sums(np.asarray(array), np)


def hexadecimal(sums: Any) -> str:
    """The sums of `checksum` as sixteen hexadecimal digits."""
    return "".join(f"{int(each):08x}" for each in np.asarray(sums))


def holds(sums: Any, digits: str) -> bool:
    """Whether every copy of the sums in this process equals `digits`, from `hexadecimal`."""
    copies = [sums]
    if isinstance(sums, jax.Array):
        copies = [shard.data for shard in sums.addressable_shards]
    return all(hexadecimal(each) == digits for each in copies)


def _sums(array: Any, xp: Any) -> Any:
    if not array.size:
        return xp.zeros(2, np.uint32)
    low, high = _words(array, xp)
    first, second = (_keys(low.shape, seed, xp) for seed in SEEDS)
    # Given the rest, each line is invertible in the word that it changes. `high` may be None.
    one = _mix(low + first)
    two = _mix(one + second if high is None else one + second + high)
    one = _mix(one ^ two)
    if xp is np:
        return np.stack([each.sum(dtype=np.uint32) for each in (one, two)])
    # Both sums in one pass: with two passes, XLA would keep all words of the array in memory.
    zeros, axes = (np.uint32(0), np.uint32(0)), range(one.ndim)
    both = jax.lax.reduce((one, two), zeros, lambda x, y: (x[0] + y[0], x[1] + y[1]), axes)
    return jnp.stack(both)


_jitted = jax.jit(partial(_sums, xp=jnp))


def _words(array: Any, xp: Any) -> tuple[Any, Any]:
    """The low words and, for 64-bit elements, the high words (else None); at least one axis."""
    if xp.issubdtype(array.dtype, np.complexfloating):
        array = xp.stack([array.real, array.imag], axis=-1)
    array = array.reshape(array.shape or (1,))
    bits = _bits(array.dtype)
    if bits == 64:
        words = _cast(array, np.dtype(np.uint32), xp)
        return words[..., 0], words[..., 1]
    if xp is np:  # in NumPy, an element of fewer than eight bits takes a byte
        mask = np.uint32((1 << bits) - 1)
        return _cast(array, np.dtype(f"u{array.dtype.itemsize}"), np).astype(np.uint32) & mask, None
    if array.dtype == bool:
        return array.astype(np.uint32), None
    return _cast(array, jnp.dtype(f"uint{bits}"), jnp).astype(np.uint32), None


def _bits(dtype: Any) -> int:
    if jnp.issubdtype(dtype, np.bool_):
        return 8
    if jnp.issubdtype(dtype, np.integer):
        return jnp.iinfo(dtype).bits
    if jnp.issubdtype(dtype, np.floating) and dtype.itemsize <= 8:
        return jnp.finfo(dtype).bits
    raise ValueError(f"no checksum of {dtype}: expected numbers of at most 64 bits")


def _cast(array: Any, dtype: Any, xp: Any) -> Any:
    """The same bits as another dtype; a smaller one adds an axis, least significant part first."""
    if xp is jnp:
        return jax.lax.bitcast_convert_type(array, dtype)
    array = np.ascontiguousarray(array)
    parts = array.dtype.itemsize // dtype.itemsize
    return array.view(dtype).reshape(array.shape + (parts,) * (parts > 1))


def _keys(shape: tuple[int, ...], seed: np.uint32, xp: Any) -> Any:
    """A key for each position: its indices times an odd number per axis, all in 32 bits."""
    rank = len(shape)
    factors = _mix(seed + np.arange(1, rank + 1, dtype=np.uint32)) | np.uint32(1)
    keys = xp.full((1,) * rank, seed, np.uint32)
    for axis, (length, factor) in enumerate(zip(shape, factors, strict=True)):
        along = [1] * rank
        along[axis] = length
        keys = keys + xp.arange(length, dtype=np.uint32).reshape(along) * factor
    return keys


def _mix(words: Any) -> Any:
    words = (words ^ (words >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return words ^ (words >> np.uint32(16))
