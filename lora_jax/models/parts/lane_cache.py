"""Decoding one token at a time, of texts of different lengths, without copying what is cached.

A `KVCache` fills the same places in all rows. Here each row has its own length, a step only reads
the cache, and its keys and values are written afterwards, for all rows at once (`written`). Places
are last but one, as attention takes them, and on CPUs each layer is an array of its own: XLA then
neither transposes nor slices what is cached.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from lora_jax.base import wide
from lora_jax.models.parts.decoder import Decoder
from lora_jax.models.parts.kv_cache import windows_of
from lora_jax.models.parts.modules import layers_at_once, over_layers
from lora_jax.models.parts.separate_layers import Layers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LaneCache:
    """The keys and values of R texts, in S places each.

    `keys` and `values` are (layers, R, groups, S, head_dim), or `Layers` of (R, groups, S,
    head_dim); keys are already rotated. Row r has tokens in its first `filled[r]` places, without
    padding; what is in the others does not count. `filled` is (R,) int32.
    """

    keys: Array | Layers
    values: Array | Layers
    filled: Array

    @property
    def capacity(self) -> int:
        """S, the number of places."""
        return jax.tree.leaves(self.keys)[0].shape[-2]


def empty_lanes(shape: tuple[int, ...], dtype: Any) -> LaneCache:
    """A cache of shape (layers, R, groups, S, head_dim) without any token."""

    def zeros() -> Array | Layers:
        if layers_at_once(shape[0], None) < shape[0]:
            return jnp.zeros(shape, dtype)
        return Layers(tuple(jnp.zeros(shape[1:], dtype) for _ in range(shape[0])))

    return LaneCache(zeros(), zeros(), jnp.zeros(shape[1], jnp.int32))


@dataclasses.dataclass(frozen=True)
class NextStep:
    """A decoder as a function that reads one more token of one text, to be mapped over texts.

    `graph` is that of the `CachedStep` of the same decoder. Hashable, as it holds no array.
    """

    graph: Any

    def __call__(
        self, params: Any, token: Array, keys: Array, values: Array, filled: Array
    ) -> tuple[Array, Array, Array]:
        """What comes after a token, and what to write into the cache.

        Args:
            token: () integer.
            keys, values: (layers, groups, S, head_dim). Mapped along axis 1, they stay as they are.
            filled: () int32: how many tokens come before.

        Returns:
            Logits (vocabulary,) of the token after it, NaN where there is no room for this one; and
            the token's keys and values, (layers, groups, head_dim).
        """
        decoder = nnx.merge(self.graph, params)
        hidden, keys, values = _state(decoder, token, keys, values, filled)
        return decoder.logits(hidden)[0], keys, values


def _state(
    decoder: Decoder, token: Array, keys: Array, values: Array, filled: Array
) -> tuple[Array, Array, Array]:
    """The hidden state (1, hidden) of a token, and its keys and values."""
    dtype, places = keys.dtype, jnp.arange(keys.shape[2], dtype=jnp.int32)
    windows, index = windows_of(decoder.config)
    back = filled - places
    masks = jnp.stack([(back > 0) & (back < (window or keys.shape[2] + 1)) for window in windows])
    positions = filled[None, None]
    x = decoder.embed(token[None, None], positions, dtype, None)
    rotation = decoder.rotation(positions, dtype)
    graph, weights = nnx.split(decoder.layers)

    def layer(x: Array, each: tuple[Any, Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        weights, kind, keys, values = each
        layer = nnx.merge(graph, weights)
        query, key, value = (x[0, 0] for x in layer.project(x, rotation))
        y = _attend(query, key, value, keys, values, masks[kind])
        return layer.finish(x, y[None, None]), (key, value)

    count = decoder.config.num_hidden_layers
    x, (keys, values) = over_layers(layer, x, (weights, index, keys, values), count, None)
    room = filled < places.shape[0]
    return jnp.where(room, decoder.norm(x)[:, 0], jnp.asarray(jnp.nan, dtype)), keys, values


def _attend(
    query: Array, key: Array, value: Array, keys: Array, values: Array, mask: Array
) -> Array:
    """Attention of a token (heads, d) to itself and to the cached tokens of a mask (S,).

    Its own `key` and `value` are (groups, d), those of the cache (groups, S, d). As
    `causal_attention.attend`, without an array that has both.
    """
    heads, width = query.shape
    groups, exact = key.shape[0], wide(query.dtype)
    query = query.reshape(groups, -1, width)
    scale = jnp.asarray(width**-0.5, exact)
    before = jnp.einsum("grd,gsd->grs", query, keys, preferred_element_type=exact) * scale
    before = jnp.where(mask[None, None], before, jnp.asarray(-1e30, exact))
    own = (query.astype(exact) * key[:, None].astype(exact)).sum(-1, keepdims=True) * scale
    p = jax.nn.softmax(jnp.concatenate([before, own], axis=-1), axis=-1).astype(query.dtype)
    y = jnp.einsum("grs,gsd->grd", p[..., :-1], values) + p[..., -1:] * value[:, None]
    return y.reshape(heads, width)


def written(cache: LaneCache, keys: Array, values: Array) -> LaneCache:
    """The cache with one more token in each row.

    Args:
        keys, values: (layers, R, groups, head_dim), of the tokens.
    """
    rows = jnp.arange(cache.filled.shape[0], dtype=jnp.int32)

    def one(whole: Array, new: Array) -> Array:
        return whole.at[rows, :, cache.filled].set(new, mode="drop", unique_indices=True)

    def all(whole: Array | Layers, new: Array) -> Array | Layers:
        if isinstance(whole, Layers):
            return Layers(tuple(one(x, new[i]) for i, x in enumerate(whole.each)))
        return jax.vmap(one)(whole, new)

    return LaneCache(all(cache.keys, keys), all(cache.values, values), cache.filled + 1)


def begun(cache: LaneCache, row: Array, keys: Array, values: Array, padding: Array) -> LaneCache:
    """The cache with a prompt in one row, in the place of all that was there.

    What an earlier text has left behind the prompt is cleared: attention multiplies it by 0, which
    takes only finite numbers away.

    Args:
        row: () integer.
        keys, values: (layers, 1, T, groups, head_dim), as a `KVCache` has them, T at most S.
        padding: () integer: how many of the T come before the prompt.
    """
    length = keys.shape[2] - padding

    def one(whole: Array, new: Array) -> Array:
        zero = jnp.zeros((), jnp.int32)
        return jax.lax.dynamic_update_slice(whole, new, (row, zero, zero, zero))

    def all(whole: Array | Layers, new: Array) -> Array | Layers:
        new = jnp.roll(new, -padding, axis=2).swapaxes(2, 3)
        places = (whole.each[0] if isinstance(whole, Layers) else whole).shape[-2]
        new = jnp.pad(
            new, [(0, places - n if axis == 3 else 0) for axis, n in enumerate(new.shape)]
        )
        if isinstance(whole, Layers):
            return Layers(tuple(one(x, new[i]) for i, x in enumerate(whole.each)))
        return jax.vmap(one)(whole, new)

    filled = cache.filled.at[row].set(length)
    return LaneCache(all(cache.keys, keys), all(cache.values, values), filled)
