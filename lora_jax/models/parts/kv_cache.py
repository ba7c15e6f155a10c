"""Decoding with a cache of the keys and values of earlier tokens.

The cache has a fixed number of slots, so that every step of a text has the same shapes and is
compiled once. A chunk of tokens takes the next slots, the same in all rows. For each row, the cache
records which slots hold a token, and the token's position in its text. Attention uses only these
positions, so padding between a prompt and its continuation changes nothing.

A `KVCache` fills the same places in all rows. A `LaneCache` is for texts of different lengths, one
token at a time: each row has its own length, a step only reads the cache, and its keys and values
are written afterwards, for all rows at once (`written`). There, places are last but one, as
attention takes them, and on CPUs each layer is an array of its own: XLA then neither transposes nor
slices what is cached.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.core import Tracer

from lora_jax.base import wide
from lora_jax.models.parts.causal_attention import Sight, attend, reach
from lora_jax.models.parts.decoder import Decoder
from lora_jax.models.parts.modules import layers_at_once, over_layers
from lora_jax.models.parts.separate_layers import Layers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """The keys and values of the tokens that a decoder has seen, in S slots.

    `keys` and `values` are (layers, B, S, groups, head_dim); keys are already rotated by their
    positions. `positions` is (B, S) int32: each token's position in its text, from 0, without
    padding. `valid` is (B, S) booleans: whether a slot holds a token. `filled` is () int32: the
    number of slots in use, by tokens or padding.
    """

    keys: Array
    values: Array
    positions: Array
    valid: Array
    filled: Array

    @property
    def capacity(self) -> int:
        """S, the number of slots."""
        return self.positions.shape[1]

    def rows(self, index: Array) -> "KVCache":
        """Select rows of the batch by an index, (N,) integers; a row may occur several times."""
        return KVCache(
            keys=self.keys[:, index],
            values=self.values[:, index],
            positions=self.positions[index],
            valid=self.valid[index],
            filled=self.filled,
        )


def empty_cache(decoder: Decoder, batch: int, capacity: int) -> KVCache:
    """An empty cache with a decoder's sizes, in the dtype that it computes in.

    ValueError for no row or slot, or for more slots than the decoder's longest sequence.
    """
    config = decoder.config
    if batch < 1 or capacity < 1:
        raise ValueError(
            f"a cache needs at least one row and one slot, got {batch} rows of {capacity} slots"
        )
    if capacity > config.max_tokens:
        raise ValueError(
            f"a cache of {capacity} tokens; the model takes at most {config.max_tokens}"
        )
    shape = (config.num_hidden_layers, batch, capacity, config.num_key_value_heads, config.head_dim)
    dtype = decoder.dtype or decoder.embedding.embedding.dtype
    return KVCache(
        keys=jnp.zeros(shape, dtype),
        values=jnp.zeros(shape, dtype),
        positions=jnp.zeros((batch, capacity), jnp.int32),
        valid=jnp.zeros((batch, capacity), bool),
        filled=jnp.zeros((), jnp.int32),
    )


def extend(
    decoder: Decoder, cache: KVCache, input_ids: Array, attention_mask: Array | None = None
) -> tuple[Array, KVCache]:
    """Hidden states of the next tokens, (B, T, hidden) as from `Decoder.hidden`, and the new cache.

    A text in several chunks gets the same states as in one. There is no dropout, and `remat` has no
    effect, as nothing is kept for a backward pass. Nor has `unroll`: layers are unrolled where that
    is the default, so that `generate` can give them as separate arrays.

    Args:
        decoder: the decoder that the cache belongs to.
        cache: the cache of the tokens before; it is not changed.
        input_ids: (B, T) integers: a whole prompt, one token, or anything between.
        attention_mask: (B, T), nonzero for a token. Padding may be anywhere; it takes a slot, and
            no token sees it.

    Raises:
        ValueError: for other shapes, and if the cache has no room. Under `jax.jit`, the number of
            filled slots is not known: states are NaN then instead.
    """
    _check(cache, input_ids, attention_mask)
    tokens, dtype = input_ids.shape[1], cache.keys.dtype
    mask = (
        jnp.ones(input_ids.shape, bool) if attention_mask is None else attention_mask.astype(bool)
    )
    before = cache.valid.sum(1, keepdims=True, dtype=jnp.int32)
    positions = jnp.maximum(before + jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    places = _written(cache.positions, positions, cache.filled, axis=1)
    valid = _written(cache.valid, mask, cache.filled, axis=1)

    windows, index = windows_of(decoder.config)
    masks = jnp.stack([_seen(positions, places, valid, window) for window in windows])
    x = decoder.embed(input_ids, positions, dtype, None)
    rotation = decoder.rotation(positions, dtype)
    graph, weights = nnx.split(decoder.layers)

    def layer(x: Array, each: tuple[Any, Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        weights, kind, keys, values = each
        layer = nnx.merge(graph, weights)
        query, key, value = layer.project(x, rotation)
        keys = _written(keys, key, cache.filled, axis=1)
        values = _written(values, value, cache.filled, axis=1)
        y = attend(query, keys, values, Sight(masks[kind], None, decoder.implementation))
        return layer.finish(x, y), (key, value)

    # The scan returns only the new tokens' keys and values, which are written after it. A cache
    # that a loop carries is then changed in place, not copied layer by layer at every step.
    xs = (weights, index, cache.keys, cache.values)
    count = decoder.config.num_hidden_layers
    x, (keys, values) = over_layers(layer, x, xs, count, None)
    fits = cache.filled + tokens <= cache.capacity
    hidden = jnp.where(fits, decoder.norm(x), jnp.asarray(jnp.nan, dtype))
    return hidden, KVCache(
        keys=_written(cache.keys, keys, cache.filled, axis=2),
        values=_written(cache.values, values, cache.filled, axis=2),
        positions=places,
        valid=valid,
        filled=cache.filled + tokens,
    )


@dataclasses.dataclass(frozen=True)
class CachedStep:
    """A decoder as a function of its parameters, step by step; hashable, as it holds no array."""

    graph: Any

    def __call__(
        self,
        params: Any,
        input_ids: Array,
        attention_mask: Array | None = None,
        cache: KVCache | None = None,
        capacity: int | None = None,
    ) -> tuple[Array, KVCache]:
        """Logits (B, vocabulary) of the token after the last of T tokens, and the cache.

        Arguments are those of `extend`. Without a cache, a new one is made with `capacity` slots,
        by default T. A row that ends in padding gets meaningless logits.
        """
        decoder = nnx.merge(self.graph, params)
        if cache is None:
            batch, tokens = input_ids.shape
            cache = empty_cache(decoder, batch, tokens if capacity is None else capacity)
        hidden, cache = extend(decoder, cache, input_ids, attention_mask)
        return decoder.logits(hidden[:, -1]), cache


def cached_step(decoder: Decoder) -> tuple[CachedStep, nnx.State]:
    """A decoder as `(step, params)`, like the `(forward, params)` of `lora_jax.from_nnx`.

    `dataclasses.replace(adapted, forward=step).apply` is the step of an adapted decoder.
    """
    graph, params = nnx.split(decoder)
    return CachedStep(graph), params


def _written(whole: Array, part: Array, start: Array, axis: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis)


def windows_of(config: Any) -> tuple[list[int | None], Array]:
    """The kinds of windows of a model, and the index of each layer's kind."""
    kinds = sorted(set(config.slides))
    windows = [config.sliding_window if slides else None for slides in kinds]
    return windows, jnp.asarray([kinds.index(slides) for slides in config.slides], jnp.int32)


def _seen(positions: Array, places: Array, valid: Array, window: int | None) -> Array:
    """The mask of a chunk, (B, 1, T, S) booleans, from positions (B, T) and places (B, S)."""
    within = jax.vmap(functools.partial(reach, window=window))(positions, places)
    return within[:, 0] & valid[:, None, None, :]


def _check(cache: KVCache, input_ids: Array, attention_mask: Array | None) -> None:
    rows, capacity = cache.positions.shape
    if input_ids.ndim != 2 or input_ids.shape[0] != rows or input_ids.shape[1] < 1:
        raise ValueError(
            f"input_ids must be ({rows}, tokens) as the cache has {rows} rows, "
            f"got {input_ids.shape}"
        )
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must be {input_ids.shape} as input_ids are, got {attention_mask.shape}"
        )
    tokens, known = input_ids.shape[1], not isinstance(cache.filled, Tracer)
    filled = int(cache.filled) if known else 0
    if filled + tokens > capacity:
        raise ValueError(
            f"{tokens} tokens do not fit into a cache of {capacity}, of which {filled} are taken"
        )


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

    both = _by_layer(one, cache.keys, keys), _by_layer(one, cache.values, values)
    return LaneCache(*both, cache.filled + 1)


def _by_layer(
    one: Callable[[Array, Array], Array], whole: Array | Layers, new: Array
) -> Array | Layers:
    """A function of each layer of a cache and of what is new in it, both stacked or apart."""
    if isinstance(whole, Layers):
        return Layers(tuple(one(x, new[i]) for i, x in enumerate(whole.each)))
    return jax.vmap(one)(whole, new)


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
        missing = (0, cache.capacity - new.shape[3])
        return _by_layer(one, whole, jnp.pad(new, ((0, 0), (0, 0), (0, 0), missing, (0, 0))))

    filled = cache.filled.at[row].set(length)
    return LaneCache(all(cache.keys, keys), all(cache.values, values), filled)
