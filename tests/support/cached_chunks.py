"""Tokens that come to a decoder in chunks, and the same tokens in one call."""

import jax.numpy as jnp
import numpy as np

from lora_jax.models.parts.kv_cache import empty_cache, extend

# What comes in four rows: a prompt padded on neither side, on the left, on the right and by more
# than half; a chunk with a hole; and a single token.
MASKS = (
    [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]],
    [[1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 1, 1]],
    [[1], [1], [1], [1]],
)


def chunks(seed=0, words=23):
    random = np.random.default_rng(seed)
    masks = [np.array(mask) for mask in MASKS]
    return [random.integers(0, words, mask.shape).astype(np.int32) for mask in masks], masks


def alone(ids, masks):
    """The tokens of each row without padding but at the end, and what of them there is."""
    ids, mask = np.concatenate(ids, 1), np.concatenate(masks, 1).astype(bool)
    whole, there = np.zeros(ids.shape, np.int32), np.zeros(ids.shape, np.int32)
    for row, (tokens, real) in enumerate(zip(ids, mask, strict=True)):
        whole[row, : real.sum()] = tokens[real]
        there[row, : real.sum()] = 1
    return whole, there, mask


def in_chunks(decoder, ids, masks, capacity):
    cache, states = empty_cache(decoder, ids[0].shape[0], capacity), []
    for tokens, mask in zip(ids, masks, strict=True):
        hidden, cache = extend(decoder, cache, tokens, jnp.asarray(mask))
        states.append(hidden)
    return decoder.logits(jnp.concatenate(states, 1)), cache
