"""Decoding with a cache of the keys and values of earlier tokens.

The cache has a fixed number of slots, so that every step of a text has the same shapes and is
compiled once. A chunk of tokens takes the next slots, the same in all rows. For each row, the cache
records which slots hold a token, and the token's position in its text. Attention uses only these
positions, so padding between a prompt and its continuation changes nothing.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.core import Tracer

from lora_jax.models.parts.causal_attention import Sight, attend, reach
from lora_jax.models.parts.decoder import Decoder
from lora_jax.models.parts.modules import over_layers


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
