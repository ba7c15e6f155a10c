"""A checksum of an array that does not depend on how devices and processes divide it.

Every element is mixed with where it stands, and all results are added up, in any order. What a
device holds is so reduced where it is, and only the sums travel.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

DIGITS = 16
SEEDS = np.uint32(0x6A09E667), np.uint32(0xBB67AE85)


def checksum(array: Any) -> Any:
    """Two unsigned 32-bit sums over all elements, (2,), of a NumPy or a JAX array.

    The sums of a JAX array stay on its devices, replicated, and are waited for by who reads them.

    An element of up to 64 bits is two words, low and high, and its place two keys. A function of
    these that can be inverted gives two other words: whatever becomes of one element, at least one
    of them becomes another, and so does its sum, modulo 2^32: a change of any single element is
    always found. (A complex number is two elements.) Any other change goes unnoticed with a
    probability of 2^-64. The mixing of words is the finaliser of MurmurHash3 (Appleby, public
    domain), which can be inverted as well.

    Raises:
      ValueError: elements of a type that has no such words, as text has not.
    """
    return _jitted(array) if isinstance(array, jax.Array) else _sums(np.asarray(array), np)


def hexadecimal(sums: Any) -> str:
    """What `checksum` gives as sixteen digits."""
    return "".join(f"{int(each):08x}" for each in np.asarray(sums))


def holds(sums: Any, digits: str) -> bool:
    """Whether every copy of the sums that this process has is as `hexadecimal` said."""
    copies = [sums]
    if isinstance(sums, jax.Array):
        copies = [shard.data for shard in sums.addressable_shards]
    return all(hexadecimal(each) == digits for each in copies)


def _sums(array: Any, xp: Any) -> Any:
    if not array.size:
        return xp.zeros(2, np.uint32)
    low, high = _words(array, xp)
    first, second = (_keys(low.shape, seed, xp) for seed in SEEDS)
    # Each line can be inverted in what it changes, given the rest; without `high`, `low` is all.
    one = _mix(low + first)
    two = _mix(one + second if high is None else one + second + high)
    one = _mix(one ^ two)
    if xp is np:
        return np.stack([each.sum(dtype=np.uint32) for each in (one, two)])
    # Both sums in one pass: of two, XLA would keep the words of a whole array in memory.
    zeros, axes = (np.uint32(0), np.uint32(0)), range(one.ndim)
    return jnp.stack(jax.lax.reduce((one, two), zeros, _add, axes))


def _add(these: Any, those: Any) -> Any:
    return tuple(a + b for a, b in zip(these, those, strict=True))


_jitted = jax.jit(partial(_sums, xp=jnp))


def _words(array: Any, xp: Any) -> tuple[Any, Any]:
    """The low and, of elements of 64 bits, the high words; of at least one axis."""
    if xp.issubdtype(array.dtype, np.complexfloating):
        array = xp.stack([array.real, array.imag], axis=-1)
    array = array.reshape(array.shape or (1,))
    bits = _bits(array.dtype)
    if bits == 64:
        words = _cast(array, np.dtype(np.uint32), xp)
        return words[..., 0], words[..., 1]
    if xp is np:  # where an element of fewer bits than eight takes a byte
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
    """The same bits as another type; a smaller one adds an axis, least significant part first."""
    if xp is jnp:
        return jax.lax.bitcast_convert_type(array, dtype)
    array = np.ascontiguousarray(array)
    parts = array.dtype.itemsize // dtype.itemsize
    return array.view(dtype).reshape(array.shape + (parts,) * (parts > 1))


def _keys(shape: tuple[int, ...], seed: np.uint32, xp: Any) -> Any:
    """A word for each place: its indices times odd numbers of their axes, so none needs 64 bits."""
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
