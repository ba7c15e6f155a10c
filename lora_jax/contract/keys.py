"""Random keys for toys: programs that draw from them compile in half of the time.

Most of an initialisation's program is JAX's own generator, which is good enough for cryptography.
These keys hash a counter, which gives numbers that look random in a few operations. A variant can
use them in every way that it uses JAX's own keys.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.extend.random import define_prng_impl


def key(seed: Any) -> Array:
    """A key, as `jax.random.key(seed)` gives one; the seed may be traced."""
    return jax.random.key(seed, impl=_HASHED)


def _hashed(x: Array) -> Array:
    """Wellons' `lowbias32`: each bit of a uint32 changes half of the bits of the result."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _bits(key: Array, width: int, shape: Sequence[int]) -> Array:
    """Unsigned integers of `width` bits, hashed from the key and the place in the array."""
    places = lax.iota(np.uint32, math.prod(shape))
    bits = _hashed(_hashed(places ^ key[0]) ^ key[1])
    if width == 64:
        both = (each.astype(np.uint64) for each in (bits, _hashed(bits ^ np.uint32(1))))
        bits = (next(both) << np.uint64(32)) | next(both)
    return bits.astype(f"uint{width}").reshape(shape)


@jax.jit
def _pair(number: Array) -> Array:
    """The two words of a key, made from a number."""
    return _hashed(lax.full((2,), number.astype(np.uint32)) ^ np.array([1, 2], np.uint32))


@jax.jit
def _folded(key: Array, number: Array) -> Array:
    return _hashed(key ^ _pair(number))


_HASHED = define_prng_impl(
    key_shape=(2,),
    seed=_pair,
    split=lambda key, shape: _bits(key, 32, (*shape, 2)),
    random_bits=_bits,
    fold_in=_folded,
    name="hashed",
    tag="hashed",
)
