"""A decoder as a function that gives the log-likelihood of completions after prompts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from lora_jax.models.parts.chunked_loss import token_losses
from lora_jax.models.parts.decoder import Decoder


def completion_likelihood(
    decoder: Decoder, longest: int, chunk: int = 128, smoothing: float = 0.0
) -> tuple[Callable[..., Array], nnx.State]:
    """A decoder as `(forward, params)`, where `forward` gives log-likelihoods of completions.

    `forward(params, input_ids, attention_mask, token_type_ids, rng=None)` gives (B, 1): the
    log-likelihood, in nats, of the tokens of type 1 given all tokens before them. These tokens must
    be contiguous. A row's first token never counts, as nothing precedes it. Logits are computed
    only for tokens of completions, `chunk` positions of every row at a time: for short answers to
    long questions, this saves most of the head's work. Padding must be at the end of a row, where
    no token sees it. The mask is not used, so that backends can use their kernels for plain causal
    attention.

    Args:
        longest: the number of tokens of the longest completion; further tokens are left out.
        smoothing: label smoothing for training, as in `token_losses`.
    """
    return _likelihoods(decoder, longest, 1, chunk, smoothing, branched=False)


def option_likelihoods(
    decoder: Decoder, options: int, longest: int, chunk: int = 128
) -> tuple[Callable[..., Array], nnx.State]:
    """As `completion_likelihood`, for several completions of one prompt in a row: (B, options).

    The tokens of completion k have type k, from 1 on, and completions follow each other. Each is
    predicted from the prompt and itself only; the prompt's states are computed once for all.

    Args:
        options: the most completions of a row; a missing one has a log-likelihood of 0.
        longest: the most tokens of all completions of a row together.
    """
    return _likelihoods(decoder, longest, options, chunk, 0.0, branched=True)


def _likelihoods(
    decoder: Decoder, longest: int, options: int, chunk: int, smoothing: float, branched: bool
) -> tuple[Callable[..., Array], nnx.State]:
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
