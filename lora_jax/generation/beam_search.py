"""Beam search as one compiled program: the texts with the best length-normalised log-probability.

It follows transformers 5 (`GenerationMixin._beam_search`), so that both find the same texts; but
here padding is not a token and is in no n-gram. The LoRA paper's code for GPT-2 (Hu et al., 2021,
arXiv:2106.09685, table 11; its gpt2_beam.py) differs from both: n-grams of the prompt do not count
(`prompt_ngrams=False` here), the probability of banned tokens goes to the other tokens, texts that
end take the place of texts that could continue, and no search stops early.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.generation.generate import (
    CachedApply,
    check_request,
    is_among,
    prefill,
    right_aligned,
)
from lora_jax.models.parts.config_checks import check_integer
from lora_jax.models.parts.separate_layers import separate, stacked

EarlyStopping = bool | Literal["never"]


class Beams(NamedTuple):
    """The texts found for each prompt, best first: `tokens[:, 0]` are the best.

    `tokens` is (B, beams, max_new_tokens) int32, padding after the end. `lengths` is (B, beams)
    int32: the number of tokens of each text, with the token that ends it. `scores` is (B, beams):
    the sum of a text's log-probabilities in nats, divided by length ** length_penalty. If fewer
    texts than `beams` were found, the rest have length 0 and score -inf.
    """

    tokens: Array
    lengths: Array
    scores: Array


def beam_search(
    apply: CachedApply,
    weights: Sequence[Any],
    input_ids: Array,
    attention_mask: Array | None = None,
    *,
    max_new_tokens: int,
    eos_ids: int | Sequence[int] | None,
    pad_id: int,
    beams: int = 10,
    length_penalty: float = 0.9,
    no_repeat_ngram_size: int = 4,
    prompt_ngrams: bool = True,
    early_stopping: EarlyStopping = False,
) -> Beams:
    """Find likely texts after prompts, with a beam search over `beams` texts at a time.

    The defaults are the LoRA paper's settings for E2E. Each prompt is computed once, and its keys
    and values are copied to all beams. Memory holds the weights once and the cache of all beams
    twice. The search is compiled as `generate` is. Other `beams`, n-gram settings and
    `early_stopping` compile a new program; another `length_penalty` does not.

    Args:
        apply: the model, step by step (see `generate`); its cache must have a method `rows`.
        weights: as for `generate`, as are prompts, `max_new_tokens`, `eos_ids` and `pad_id`.
        beams: how many unfinished texts to follow, and how many finished ones to keep, per prompt.
        length_penalty: a finished text's sum is divided by its length to this power: 0 favours
            short texts, 1 takes the mean.
        no_repeat_ngram_size: no sequence of this many tokens may occur twice; 0 allows it.
        prompt_ngrams: whether the prompt's n-grams count as having occurred.
        early_stopping: when to stop a prompt that has `beams` finished texts. True: at once. False
            (a heuristic): when its best unfinished text scores no better than the worst of them at
            its present length. "never": when it could not do better at any length.

    Raises:
        ValueError: for invalid settings, and for a prompt without tokens.
    """
    eos = check_request(input_ids, attention_mask, max_new_tokens, eos_ids, pad_id)
    check_integer("beams", beams, least=1)
    check_integer("no_repeat_ngram_size", no_repeat_ngram_size, least=0)
    if not isinstance(length_penalty, int | float) or not math.isfinite(length_penalty):
        raise ValueError(f"length_penalty must be a number, got {length_penalty!r}")
    if not (isinstance(early_stopping, bool) or early_stopping == "never"):
        raise ValueError(f"early_stopping must be True, False or 'never', got {early_stopping!r}")
    return _search(
        apply,
        separate(tuple(weights)),
        input_ids,
        attention_mask,
        length_penalty,
        max_new_tokens=max_new_tokens,
        eos_ids=eos,
        pad_id=pad_id,
        beams=beams,
        ngram=no_repeat_ngram_size,
        prompt_ngrams=prompt_ngrams,
        early_stopping=early_stopping,
    )


class _State(NamedTuple):
    """Unfinished texts of `written` tokens with their sums, and finished texts with their scores.

    `parents` (B, beams): the cache rows from which the unfinished texts continue. `open` (B,):
    whether an unfinished text may still beat a finished one. `stuck` (): whether no text of any
    prompt can continue.
    """

    written: Array
    tokens: Array
    sums: Array
    parents: Array
    finished: Beams
    is_finished: Array
    open: Array
    stuck: Array
    cache: Any


_STATIC = (
    "apply",
    "max_new_tokens",
    "eos_ids",
    "pad_id",
    "beams",
    "ngram",
    "prompt_ngrams",
    "early_stopping",
)


@functools.partial(jax.jit, static_argnames=_STATIC)
def _search(
    apply: CachedApply,
    weights: tuple[Any, ...],
    input_ids: Array,
    attention_mask: Array | None,
    length_penalty: Array,
    *,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    beams: int,
    ngram: int,
    prompt_ngrams: bool,
    early_stopping: EarlyStopping,
) -> Beams:
    rows = input_ids.shape[0]
    logits, cache = prefill(apply, stacked(weights), input_ids, attention_mask, max_new_tokens)
    dtype, words = logits.dtype, logits.shape[-1]
    # Enough candidates that at least `beams` of them do not end.
    wide = max(2, 1 + len(eos_ids)) * beams
    if wide > beams * words:
        raise ValueError(f"{len(eos_ids)} eos_ids leave no other token in a vocabulary of {words}")
    ids, mask = right_aligned(input_ids, attention_mask)
    known = jnp.where(mask & prompt_ngrams, ids, -1)
    known = jnp.broadcast_to(known[:, None], (rows, beams, ids.shape[1]))

    def normalised(sums: Array, length: Array) -> Array:
        return sums / length.astype(dtype) ** length_penalty

    def choose(state: _State, logits: Array) -> _State:
        """Choose the next token of every text, from logits (B, beams, vocabulary)."""
        log_p = jax.nn.log_softmax(logits)
        if ngram:
            history = jnp.concatenate([known, state.tokens], axis=-1)
            banned = repeating(history, ids.shape[1] + state.written, ngram, words)
            log_p = jnp.where(banned, -jnp.inf, log_p)
        sums = (state.sums[:, :, None] + log_p).reshape(rows, beams * words)
        sums, index = jax.lax.top_k(sums, wide)
        parents, token = index // words, index % words
        tokens = _rows(state.tokens, parents).at[:, :, state.written].set(token)
        length = state.written + 1
        ends = is_among(token, eos_ids) | (length == max_new_tokens)

        running, best = jax.lax.top_k(jnp.where(ends, -jnp.inf, sums), beams)
        # Only the best `beams` candidates may finish, and none once a row is done.
        done = ~state.open | (state.is_finished.all(1) & (early_stopping is True))
        finishes = ends & (jnp.arange(wide) < beams)[None] & ~done[:, None]
        scores = jnp.where(finishes, normalised(sums, length), -jnp.inf)
        scores = jnp.concatenate([state.finished.scores, scores], axis=1)
        scores, kept = jax.lax.top_k(scores, beams)
        lengths = jnp.broadcast_to(length, finishes.shape)
        finished = Beams(
            tokens=_rows(jnp.concatenate([state.finished.tokens, tokens], axis=1), kept),
            lengths=_rows(jnp.concatenate([state.finished.lengths, lengths], axis=1), kept),
            scores=scores,
        )
        is_finished = _rows(jnp.concatenate([state.is_finished, finishes], axis=1), kept)

        longest = length
        if early_stopping == "never":
            longest = jnp.where(length_penalty > 0, max_new_tokens, length)
        worst = jnp.where(is_finished.all(1), scores[:, -1], -jnp.inf)
        return _State(
            written=length,
            tokens=_rows(tokens, best),
            sums=running,
            parents=_rows(parents, best),
            finished=finished,
            is_finished=is_finished,
            open=state.open & (normalised(running[:, 0], longest) > worst),
            stuck=ends.all(),
            cache=state.cache,
        )

    def goes_on(state: _State) -> Array:
        enough = state.is_finished.all() & (early_stopping is True)
        return state.open.any() & ~enough & ~state.stuck

    def advance(state: _State) -> _State:
        flat = state.parents + beams * jnp.arange(rows, dtype=jnp.int32)[:, None]
        last = jax.lax.dynamic_index_in_dim(state.tokens, state.written - 1, 2, keepdims=False)
        logits, cache = apply(
            *stacked(weights), last.reshape(-1, 1), None, state.cache.rows(flat.reshape(-1))
        )
        return choose(state._replace(cache=cache), logits.reshape(rows, beams, words))

    nothing = jnp.full((rows, beams, max_new_tokens), pad_id, jnp.int32)
    worst = jnp.full((rows, beams), -jnp.inf, dtype)
    start = _State(
        written=jnp.zeros((), jnp.int32),
        tokens=nothing,
        sums=worst.at[:, 0].set(0),  # all beams are the same prompt: only one counts
        parents=jnp.zeros((rows, beams), jnp.int32),
        finished=Beams(nothing, jnp.zeros((rows, beams), jnp.int32), worst),
        is_finished=jnp.zeros((rows, beams), bool),
        open=jnp.ones(rows, bool),
        stuck=jnp.zeros((), bool),
        cache=cache.rows(jnp.repeat(jnp.arange(rows), beams)),
    )
    first = jnp.broadcast_to(logits[:, None], (rows, beams, words))
    return jax.lax.while_loop(goes_on, advance, choose(start, first)).finished


def repeating(history: Array, length: Array, size: int, vocabulary: int) -> Array:
    """Which next tokens would repeat an earlier n-gram, (..., vocabulary) booleans.

    Args:
        history: (..., L) integers, of which the first `length` count; -1 is not a token.
        length: () integer.
        size: the n of the n-grams, 1 or more.
    """
    if size > history.shape[-1]:
        return jnp.zeros((*history.shape[:-1], vocabulary), bool)
    texts = history.reshape(-1, history.shape[-1])
    starts = texts.shape[1] - size + 1
    tail = jax.lax.dynamic_slice_in_dim(texts, length - (size - 1), size - 1, axis=1)
    there = jnp.arange(size - 1, texts.shape[1], dtype=jnp.int32) < length
    same = jnp.broadcast_to(there, (len(texts), starts))
    for i in range(size - 1):
        same &= texts[:, i : i + starts] == tail[:, i : i + 1]
    next_token = texts[:, size - 1 :]
    found = jnp.where(same & (next_token >= 0), next_token, vocabulary)  # dropped, out of bounds
    banned = jnp.zeros((len(texts), vocabulary), bool)
    banned = banned.at[jnp.arange(len(texts))[:, None], found].set(True, mode="drop")
    return banned.reshape(*history.shape[:-1], vocabulary)


def _rows(x: Array, index: Array) -> Array:
    """Select entries of each row by its own indices: (B, N, ...) and (B, M) give (B, M, ...)."""
    return jax.vmap(lambda each, chosen: each[chosen])(x, index)
