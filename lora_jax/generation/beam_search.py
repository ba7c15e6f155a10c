"""Beam search: the best of many texts by the mean of their log-probabilities, as one program.

As transformers 5 has it (`GenerationMixin._beam_search`), so that both find the same texts; but
padding is no token here, and no part of an n-gram. The code of the LoRA paper for GPT-2 (Hu et al.,
2021, arXiv:2106.09685, table 11; its gpt2_beam.py) differs from both: n-grams of the prompt do not
count (`prompt_ngrams=False` here), the probability of banned tokens goes to the others, texts that
end take the place of ones that could go on, and no search stops early.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.generation.generate import Step, check_request, is_among, prefill, right_aligned
from lora_jax.models.parts.config_checks import check_integer

EarlyStopping = bool | Literal["never"]


class Beams(NamedTuple):
    """The texts that were found of each prompt, best first: `tokens[:, 0]` are the best.

    `tokens` (B, beams, max_new_tokens) int32, padding after the end; `lengths` (B, beams) int32,
    how many count, the token that ends a text included; `scores` (B, beams), the sum of a text's
    log-probabilities in nats over length ** length_penalty. Where there were fewer texts than
    beams, the others have length 0 and score -inf.
    """

    tokens: Array
    lengths: Array
    scores: Array


def beam_search(
    apply: Step,
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
    """The likeliest texts after prompts that a search over `beams` of them at a time finds.

    The defaults are the settings of the LoRA paper for E2E. Prompts are read once, and their keys
    and values handed out to the beams; the weights are there once, the cache of all beams twice.
    Compiled as `generate` is, and anew for other `beams`, n-grams and `early_stopping`, not for
    another `length_penalty`.

    Args:
        apply: the model, step by step (see `generate`); its cache has a method `rows`.
        weights: as for `generate`, as are prompts, `max_new_tokens`, `eos_ids` and `pad_id`.
        beams: how many unfinished texts of each prompt are followed, and finished ones kept.
        length_penalty: the power of the length that a finished text's sum is divided by: 0 favours
            short ones, 1 takes the mean.
        no_repeat_ngram_size: no so many tokens in a row may occur twice; 0 lets them.
        prompt_ngrams: whether those of the prompt count as having occurred.
        early_stopping: True ends with `beams` finished texts; False (a heuristic) when the best
            unfinished one scores below them at its present length; "never" when it would at
            any length.

    Raises:
        ValueError: for settings that cannot work, and for a prompt without a token.
    """
    eos = check_request(input_ids, attention_mask, max_new_tokens, eos_ids, pad_id)
    check_integer("beams", beams, least=1)
    check_integer("no_repeat_ngram_size", no_repeat_ngram_size, least=0)
    if not isinstance(length_penalty, int | float) or not math.isfinite(length_penalty):
        raise ValueError(f"length_penalty must be a number, got {length_penalty!r}")
    if early_stopping not in (True, False, "never"):
        raise ValueError(f"early_stopping must be True, False or 'never', got {early_stopping!r}")
    return _search(
        apply,
        tuple(weights),
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
    """Unfinished texts of `written` tokens with their sums, and finished ones with their scores.

    `parents` (B, beams): the rows of the cache that the unfinished texts go on from. `open` (B,):
    whether one may still beat a finished one. `stuck` (): whether none can go on.
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


_STATIC = ("apply", "max_new_tokens", "eos_ids", "pad_id", "beams")
_STATIC += ("ngram", "prompt_ngrams", "early_stopping")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _search(
    apply: Step,
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
    logits, cache = prefill(apply, weights, input_ids, attention_mask, max_new_tokens)
    dtype, words = logits.dtype, logits.shape[-1]
    # So many candidates that `beams` of them do not end, whatever the others do.
    wide = max(2, 1 + len(eos_ids)) * beams
    if wide > beams * words:
        raise ValueError(f"{len(eos_ids)} eos_ids leave nothing else of a vocabulary of {words}")
    ids, mask = right_aligned(input_ids, attention_mask)
    known = jnp.where(mask & prompt_ngrams, ids, -1)
    known = jnp.broadcast_to(known[:, None], (rows, beams, ids.shape[1]))

    def normalised(sums: Array, length: Array) -> Array:
        return sums / length.astype(dtype) ** length_penalty

    def choose(state: _State, logits: Array) -> _State:
        """The next token of every text, from logits (B, beams, vocabulary)."""
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
        # Only what is among the best may finish; and nothing more once a row is done.
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
            *weights, last.reshape(-1, 1), None, state.cache.rows(flat.reshape(-1))
        )
        return choose(state._replace(cache=cache), logits.reshape(rows, beams, words))

    nothing = jnp.full((rows, beams, max_new_tokens), pad_id, jnp.int32)
    worst = jnp.full((rows, beams), -jnp.inf, dtype)
    start = _State(
        written=jnp.zeros((), jnp.int32),
        tokens=nothing,
        sums=worst.at[:, 0].set(0),  # all beams are the prompt: one of them counts
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
    """Which tokens would complete `size` in a row that have been there, (..., vocabulary) booleans.

    Args:
        history: (..., L) integers, of which the first `length` are there; -1 is no token.
        length: () integer.
        size: how many in a row, 1 or more.
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
    """The entries of each row at its own indices, (B, N, ...) and (B, M) to (B, M, ...)."""
    return jax.vmap(lambda each, chosen: each[chosen])(x, index)
