"""A decoder as a function of prompts with completions: how likely it thinks each completion."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax import Array

from lora_jax.chunked_loss import token_losses
from lora_jax.models.decoder import Decoder


def completion_likelihood(
    decoder: Decoder, longest: int, chunk: int = 128
) -> tuple[Callable[..., Array], nnx.State]:
    """A decoder as `(forward, params)`, whose outputs are log-likelihoods of completions.

    `forward(params, input_ids, attention_mask, token_type_ids, rng=None)` gives (B, 1), the
    log-likelihood of the tokens of type 1, in nats, given all that is before them. They stand in a
    row; the first token of all is predicted from nothing, and counts nothing. There are logits only
    where a token of a completion is predicted, `chunk` positions of every row at a time: for short
    answers to long questions, that saves most of the head's work.

    Args:
        longest: tokens of the longest completion there is; of a longer one, the rest is left out.
    """
    if longest < 1:
        raise ValueError(f"longest must be at least 1, got {longest}")
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
        hidden = model.hidden(input_ids, attention_mask, rng=rng)
        tokens = input_ids.shape[1]
        first = jnp.argmax(token_type_ids == 1, axis=1)[:, None]
        wanted = first + jnp.arange(min(longest, tokens))
        places = jnp.clip(wanted, 1, tokens - 1)
        counts = (wanted == places) & (jnp.take_along_axis(token_type_ids, places, axis=1) == 1)
        targets = jnp.take_along_axis(input_ids, places, axis=1)
        before = jnp.take_along_axis(hidden, (places - 1)[:, :, None], axis=1)
        losses = token_losses(model.logits, before, targets, chunk)
        return -jnp.where(counts, losses, 0).sum(axis=1, keepdims=True)

    return forward, params
