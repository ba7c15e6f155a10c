"""Relative positions: the embedding of each distance, and aligning scores by distance to tokens."""

import jax.numpy as jnp
import numpy as np
from jax import Array


def relative_indices(tokens: int, span: int, buckets: int, positions: int) -> np.ndarray:
    """The row, of `2 * span` rows, of every distance from 1 - tokens to tokens - 1, int32.

    With `buckets`, distances up to half of the buckets have their own rows. From there to
    `positions`, distances share rows by their logarithm, more and more. The logarithm is computed
    in float32 as in transformers, because it is rounded up. Farther distances get the last row of
    their side.
    """
    distances = np.arange(1 - tokens, tokens, dtype=np.int32)
    if buckets > 0:
        distances = _log_buckets(distances, buckets // 2, positions)
    return np.clip(distances + span, 0, 2 * span - 1).astype(np.int32)


def _log_buckets(distances: np.ndarray, middle: int, positions: int) -> np.ndarray:
    far = np.maximum(np.abs(distances), middle).astype(np.float32)
    share = np.log(far / np.float32(middle)) / np.log(np.float32((positions - 1) / middle))
    buckets = middle + np.ceil(share * np.float32(middle - 1)).astype(np.int32)
    return np.where(np.abs(distances) <= middle, distances, np.sign(distances) * buckets)


def skew(x: Array) -> Array:
    """Align columns by distance with tokens: (..., T, 2 T - 1) to (..., T, T).

    Element [i, j] is x[i, j - i + T - 1]. This takes two reshapes and two slices: with one more
    column, each row starts one element later.
    """
    *batch, tokens, columns = x.shape
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)]).reshape(*batch, -1)
    x = x[..., tokens - 1 : tokens - 1 + tokens * columns]
    return x.reshape(*batch, tokens, columns)[..., :tokens]
