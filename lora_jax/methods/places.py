"""Distinct random entries of a matrix."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def distinct_places(key: Array, shape: tuple[int, int], count: int) -> Array:
    """The places of distinct entries in the order of rows, (2, count): rows, and columns.

    One entry is drawn from each of `count` stretches of nearly equal length, into which the matrix
    is cut in the order of its rows. So nothing as large as the matrix is made, as a shuffle would.
    """
    bounds = np.arange(count + 1, dtype=np.int64) * (shape[0] * shape[1]) // count
    first, columns = (part.astype(np.int32) for part in np.divmod(bounds[:-1], shape[1]))
    lengths = np.diff(bounds).astype(np.int32)
    drawn = jax.random.uniform(key, (count,), jnp.float32) * lengths.astype(np.float32)
    columns = jnp.asarray(columns) + jnp.minimum(drawn.astype(jnp.int32), lengths - 1)
    return jnp.stack([jnp.asarray(first) + columns // shape[1], columns % shape[1]])
