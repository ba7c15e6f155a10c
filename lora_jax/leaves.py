"""Leaves of saved trees: their types as text, their bits, their digests."""

import hashlib
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


def to_host(array: Any) -> np.ndarray:
    """The whole of an array; of one that is divided among processes, all have to ask."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def digest(array: Any) -> str:
    return hashlib.sha256(to_host(array).tobytes()).hexdigest()


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
