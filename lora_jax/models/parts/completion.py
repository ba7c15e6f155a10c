"""What a decoder thinks of texts: losses of next tokens, and log-likelihoods of completions.

Cross-entropy is computed one chunk of positions at a time: all logits never exist at once. The
logits of 8 texts of 2048 tokens over 128,256 words are 8.4 GB in float32, more than a model that
fits beside them. Here a chunk's logits are computed, reduced and dropped, and computed again in the
backward pass. This costs one more product with the head, beside the three of a step. A single chunk
is not computed again: that would save nothing.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from lora_jax.base import wide
from lora_jax.models.parts.decoder import Decoder


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
            token of every document of a packed row; by default all are 1. A row's first token never
            counts, as nothing precedes it. If all weights are 0, the loss is 0.
        chunk: as for `token_losses`.
    """
    losses = token_losses(logits, hidden, jnp.roll(input_ids, -1, axis=1), chunk)
    if weights is None:
        weights = jnp.ones(input_ids.shape, losses.dtype)
    weights = weights.astype(losses.dtype).at[:, 0].set(0)
    weights = jnp.roll(weights, -1, axis=1)
    total = weights.sum()
    return (losses * weights).sum() / jnp.where(total == 0, jnp.ones_like(total), total)


def completion_likelihood(
    decoder: Decoder,
    longest: int,
    chunk: int = 128,
    smoothing: float = 0.0,
    options: int | None = None,
) -> tuple[Callable[..., Array], nnx.State]:
    """A decoder as `(forward, params)`, where `forward` gives log-likelihoods of completions.

    `forward(params, input_ids, attention_mask, token_type_ids, rng=None)` gives (B, 1): the
    log-likelihood, in nats, of the tokens of type 1 given all tokens before them. These tokens must
    be contiguous. A row's first token never counts, as nothing precedes it. Logits are computed
    only for tokens of completions, `chunk` positions of every row at a time: for short answers to
    long questions, this saves most of the head's work. Padding must be at the end of a row, where
    no token sees it. The mask is not used, so that backends can use their kernels for plain causal
    attention.

    With `options`, a row has several completions of one prompt, and `forward` gives (B, options).
    The tokens of completion k have type k, from 1 on, and completions follow each other. Each is
    predicted from the prompt and itself only; the prompt's states are computed once for all.

    Args:
        longest: the number of tokens of the longest completion, or of all completions of a row
            together; further tokens are left out.
        smoothing: label smoothing for training, as in `token_losses`.
        options: the most completions of a row; a missing one has a log-likelihood of 0.
    """
    branched, options = options is not None, 1 if options is None else options
    if longest < 1 or options < 1:
        raise ValueError(f"expected completions of one token or more, got {options} of {longest}")
    graph, params = nnx.split(decoder)

    def forward(
        params: nnx.State,
        input_ids: Array,
        attention_mask: Array,
        token_type_ids: Array,
        *,
        rng: Array | None = None,
    ) -> Array:
        model = nnx.merge(graph, params)
        hidden = model.hidden(input_ids, branches=token_type_ids if branched else None, rng=rng)
        first = jnp.argmax(token_type_ids > 0, axis=1)[:, None]
        places, kinds = _completions(token_type_ids, first, longest)
        begins = kinds != _at(token_type_ids, places - 1)
        kinds = jnp.where(begins & (first == 0), 0, kinds)  # nothing precedes them
        before = jnp.where(begins, jnp.maximum(first - 1, 0), places - 1)
        states = jnp.take_along_axis(hidden, before[:, :, None], axis=1)
        losses = token_losses(model.logits, states, _at(input_ids, places), chunk, smoothing)
        of_each = jax.nn.one_hot(kinds - 1, options, dtype=losses.dtype)
        return -jnp.einsum("bt,bto->bo", losses, of_each)

    return forward, params


def _completions(types: Array, first: Array, longest: int) -> tuple[Array, Array]:
    """The places of completions' tokens, (B, min(longest, T)), and their types, 0 for no token.

    Places are within the row, and those of tokens at least 1.

    Args:
        first: (B, 1), the place of the first of them.
    """
    tokens = types.shape[1]
    wanted = first + jnp.arange(min(longest, tokens))[None]
    places = jnp.clip(wanted, 1, tokens - 1)
    return places, jnp.where((wanted == places) & (places > 0), _at(types, places), 0)


def _at(row: Array, places: Array) -> Array:
    return jnp.take_along_axis(row, places, axis=1)
