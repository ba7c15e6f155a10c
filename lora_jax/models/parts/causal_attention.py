"""Causal attention: which keys each query sees, and the product over grouped heads."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.base import wide
from lora_jax.models.parts.modules import dropout, split_keys

Implementation = Literal["xla", "cudnn"]
"""The backends of `jax.nn.dot_product_attention`, by its names; None is the code of this file."""


BLOCKS, BLOCK = 4, 64
"""How many blocks of queries a sequence has at most, and how many tokens a block at least."""


class Sight(NamedTuple):
    """Which keys the queries see: if `mask` is given, (B or 1, 1, T, S) booleans, it alone decides.

    If T == S, it must not let a query see a later key. Without a mask, T == S, and each token sees
    itself and all earlier tokens, or with `window` only the last `window` of these. A backend with
    a flash kernel then skips the others.
    """

    mask: Array | None = None
    window: int | None = None
    implementation: Implementation | None = None


def reach(queries: Array, keys: Array, window: int | None = None) -> Array:
    """Which keys each query may see by position: (T,) and (S,) to (1, 1, T, S) booleans.

    A query sees itself and all earlier positions; with a window, only the last `window` of these.
    """
    distance = queries[:, None] - keys[None, :]
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return seen[None, None]


def visible(
    tokens: int,
    attention_mask: Array | None = None,
    segments: Array | None = None,
    window: int | None = None,
    branches: Array | None = None,
    positions: Array | None = None,
) -> Array:
    """The mask of a whole sequence, (B or 1, 1, T, T) booleans.

    Args:
        attention_mask: (B, T), nonzero for a token.
        segments: (B, T) integers; a token sees only tokens with its own number.
        window: how many tokens back a token sees, itself included.
        branches: (B, T) integers, 0 for the shared beginning; a token sees that beginning and
            tokens with its own number.
        positions: (B, T); with branches, the window is counted in these positions.
    """
    index = jnp.arange(tokens)
    if branches is None:
        seen = reach(index, index, window)
    else:
        own, other = branches[:, None, :, None], branches[:, None, None, :]
        seen = reach(index, index) & ((own == other) | (other == 0))
        if window is not None and positions is not None:
            seen = seen & (positions[:, None, :, None] - positions[:, None, None, :] < window)
    if attention_mask is not None:
        seen = seen & attention_mask.astype(bool)[:, None, None, :]
    if segments is not None:
        seen = seen & (segments[:, None, :, None] == segments[:, None, None, :])
    return seen


def restarting(segments: Array, attention_mask: Array | None = None) -> Array:
    """Positions that restart at 0 in every run of equal numbers: (B, T) to (B, T) int32.

    Padding, where there is a mask, is not counted.
    """
    counts = jnp.ones_like(segments) if attention_mask is None else attention_mask
    counts = counts.astype(bool).astype(jnp.int32)
    before = jnp.cumsum(counts, axis=1, dtype=jnp.int32) - counts
    first = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return before - jax.lax.cummax(jnp.where(first, before, 0), axis=1)


def attend(
    query: Array,
    key: Array,
    value: Array,
    sight: Sight,
    dropout_rate: float = 0.0,
    rng: Array | None = None,
) -> Array:
    """Attention of queries (B, T, heads, d) to keys and values (B, S, groups, d).

    The result has the shape of the queries. Each group of keys serves heads / groups consecutive
    heads (Ainslie et al., 2023, arXiv:2305.13245). Softmax is in float32 at least. A query that
    sees no key gets a finite but meaningless result. With `rng`, a share `dropout_rate` of the
    probabilities is dropped.
    """
    drops = rng is not None and dropout_rate > 0
    # jax.nn's function has no dropout, and computes softmax in float32 even for float64. Its "xla"
    # computes the scores of later keys, too, and takes two to three times as long on CPUs.
    if drops or query.dtype == jnp.float64 or sight.implementation is None:
        return _attend(query, key, value, sight, dropout_rate, rng)
    window = None if sight.window is None else (sight.window - 1, 0)
    own = sight.mask is None
    with jax.numpy_dtype_promotion("standard"):  # it mixes bfloat16 and float32 internally
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            mask=sight.mask,
            is_causal=own,
            local_window_size=window if own else None,
            implementation=sight.implementation,
        )


def _attend(
    query: Array, key: Array, value: Array, sight: Sight, rate: float, rng: Array | None
) -> Array:
    """The same as `attend`, written out; whole sequences in blocks, without the keys after each."""
    tokens = query.shape[1]
    mask = visible(tokens, window=sight.window) if sight.mask is None else sight.mask
    if key.shape[1] != tokens:
        return _attend_block(query, key, value, mask, rate, rng)
    size = -(-tokens // max(1, min(BLOCKS, tokens // BLOCK)))
    ends = [*range(size, tokens, size), tokens]
    keys = split_keys(rng, len(ends))
    blocks = [
        _attend_block(
            query[:, start:end], key[:, :end], value[:, :end], mask[..., start:end, :end], rate, own
        )
        for start, end, own in zip([0, *ends], ends, keys, strict=False)
    ]
    return jnp.concatenate(blocks, axis=1)


def _attend_block(
    query: Array, key: Array, value: Array, mask: Array, rate: float, rng: Array | None
) -> Array:
    batch, tokens, heads, width = query.shape
    groups, exact = key.shape[2], wide(query.dtype)
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    # The queries of a group are rows of one matrix: XLA then transposes no scores.
    query = query.reshape(batch, tokens, groups, -1, width).transpose(0, 2, 3, 1, 4)
    rows = query.reshape(batch, groups, -1, width)
    scores = jnp.einsum("bgrd,bgsd->bgrs", rows, key, preferred_element_type=exact)
    scores = scores.reshape(*query.shape[:4], -1) * jnp.asarray(width**-0.5, exact)
    scores = jnp.where(mask[:, :, None], scores, jnp.asarray(-1e30, exact))
    p = dropout(jax.nn.softmax(scores, axis=-1).astype(query.dtype), rate, rng)
    y = jnp.einsum("bgrs,bgsd->bgrd", p.reshape(*rows.shape[:3], -1), value)
    return y.reshape(query.shape).transpose(0, 3, 1, 2, 4).reshape(batch, tokens, heads, width)
