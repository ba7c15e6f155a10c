"""Next-token cross-entropy, one chunk of positions at a time: all logits never exist at once.

The logits of 8 texts of 2048 tokens over 128,256 words are 8.4 GB in float32, more than a model
that fits beside them. Here a chunk's logits are computed, reduced and dropped, and computed again
in the backward pass. This costs one more product with the head, beside the three of a step. A
single chunk is not computed again: that would save nothing.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.base import wide


def token_losses(
    logits: Callable[[Array], Array],
    hidden: Array,
    targets: Array,
    chunk: int = 128,
    smoothing: float = 0.0,
) -> Array:
    """The cross-entropy of every position's target, (B, T), in nats; in float32 at least.

    Args:
        logits: a decoder's `logits`, or any other function of hidden states that treats each
            position by itself; gradients reach the arrays that it closes over.
        hidden: (B, T, width).
        targets: (B, T) integers, the token that each position predicts. Each must be in the
            vocabulary, even where the loss is not used.
        chunk: the number of positions per row whose logits exist at once: a few times
            B x chunk x vocabulary numbers. Rows are not split, so a batch that is sharded over
            devices stays so.
        smoothing: the share of a target that is spread evenly over all words (label smoothing:
            Szegedy et al., 2016, arXiv:1512.00567, section 7).

    Raises:
        ValueError: for a chunk below 1, or targets of another shape.
    """
    batch, tokens, _ = hidden.shape
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if targets.shape != (batch, tokens):
        raise ValueError(
            f"targets must be {(batch, tokens)} as hidden states are, got {targets.shape}"
        )
    chunk = min(chunk, tokens)
    extra = -tokens % chunk
    hidden = jnp.pad(hidden, ((0, 0), (0, extra), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, extra)))

    def chunks(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(batch, -1, chunk, *x.shape[2:]), 1, 0)

    def losses(each: tuple[Array, Array]) -> Array:
        x, target = each
        scores = logits(x)
        scores = scores.astype(wide(scores.dtype))
        chosen = jnp.take_along_axis(scores, target[:, :, None], axis=-1)[:, :, 0]
        if smoothing:
            chosen = (1 - smoothing) * chosen + smoothing * scores.mean(axis=-1)
        return jax.nn.logsumexp(scores, axis=-1) - chosen

    if chunk == tokens:
        return losses((hidden, targets))
    again = jax.checkpoint(losses, prevent_cse=False)
    result = jax.lax.map(again, (chunks(hidden), chunks(targets)))
    return jnp.moveaxis(result, 0, 1).reshape(batch, -1)[:, :tokens]


def next_token_loss(
    logits: Callable[[Array], Array],
    hidden: Array,
    input_ids: Array,
    weights: Array | None = None,
    chunk: int = 128,
) -> Array:
    """The weighted mean cross-entropy of each token given the tokens before it, a scalar in nats.

    Args:
        logits: as for `token_losses`.
        hidden: (B, T, width), the states after each token.
        input_ids: (B, T), the tokens.
        weights: (B, T), the weight of each token as a target: 0 for padding, prompts and the first
            token of every document (`lora_jax.data.batching.packing` makes such weights); by
            default all are 1. A row's first token never counts, as nothing precedes it. If all
            weights are 0, the loss is 0.
        chunk: as for `token_losses`.
    """
    losses = token_losses(logits, hidden, jnp.roll(input_ids, -1, axis=1), chunk)
    if weights is None:
        weights = jnp.ones(input_ids.shape, losses.dtype)
    weights = weights.astype(losses.dtype).at[:, 0].set(0)
    weights = jnp.roll(weights, -1, axis=1)
    total = weights.sum()
    return (losses * weights).sum() / jnp.where(total == 0, jnp.ones_like(total), total)
