"""Text generation: the likeliest token, or one drawn, again and again, as one compiled program.

    step, params = cached_step(decoder)
    out = generate(step, (params,), ids, mask, max_new_tokens=40, eos_ids=2, pad_id=0)

    adapted = lj.adapt(forward, variants.make("lora"), targets="all-linear")
    apply = dataclasses.replace(adapted, forward=step).apply
    out = generate(apply, (trainable, frozen), ids, mask, max_new_tokens=40, ...)

The base weights are there once, whatever is generated. What a variant makes of its factors alone
(DoRA's norms, NF4's numbers) it makes at every token again: where there is memory for it,
`adapted.merge` first is faster.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from lora_jax.models.parts.config_checks import check_integer, token_ids

Step = Callable[..., tuple[Array, Any]]
"""`apply(*weights, input_ids, attention_mask, cache, capacity=)`, see `models.kv_cache.CachedStep`.

What it returns as a cache is any pytree; beam search asks for a method `rows` too.
"""


class Generated(NamedTuple):
    """`tokens` (B, max_new_tokens) int32, and how many of each row count, `lengths` (B,) int32.

    The token that ends a text is the last that counts; padding follows it.
    """

    tokens: Array
    lengths: Array


def generate(
    apply: Step,
    weights: Sequence[Any],
    input_ids: Array,
    attention_mask: Array | None = None,
    *,
    max_new_tokens: int,
    eos_ids: int | Sequence[int] | None,
    pad_id: int,
    key: Array | None = None,
    temperature: float = 0.0,
    top_p: float | None = None,
    top_k: int | None = None,
) -> Generated:
    """What a model writes after prompts.

    It is compiled once for every `apply` (keep it: a bound method made anew compiles anew), shape
    and dtype of prompts and weights, `max_new_tokens`, `eos_ids`, `pad_id`, `top_k`, and for each
    way to choose (greedy, drawn, drawn with `top_p`): other weights, temperatures, values of
    `top_p` and keys take the same program. The loop ends as soon as all rows have.

    Args:
        apply: the model, step by step (see `Step`).
        weights: what `apply` takes first: `(params,)`, or `(trainable, frozen)` of an adapted one.
        input_ids: (B, T) integers.
        attention_mask: (B, T), nonzero where there is a token; padding may be on either side.
        max_new_tokens: the longest text.
        eos_ids: which tokens end a text: one, several or None.
        pad_id: what rows that have ended are filled with.
        key: a `jax.random.key`, from which row i takes `fold_in(key, i)`, or (B,) keys, each row's
            own. A row's draws depend on its key alone, not on the rows beside it.
        temperature: what logits are divided by before one is drawn; 0 takes the largest.
        top_p: draws from the fewest tokens whose probabilities add up to this, in (0, 1]
            (Holtzman et al., 2020, arXiv:1904.09751, section 3.1).
        top_k: draws from so many of the likeliest tokens (before `top_p`, as in transformers).

    Raises:
        ValueError: for settings that cannot work or do not act, and for a prompt without a token.
    """
    eos = check_request(input_ids, attention_mask, max_new_tokens, eos_ids, pad_id)
    _check_draws(key, temperature, top_p, top_k, input_ids.shape[0])
    drawn = temperature > 0
    if drawn and key is not None and key.ndim == 0:
        key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(input_ids.shape[0]))
    return _generate(
        apply,
        tuple(weights),
        input_ids,
        attention_mask,
        key if drawn else None,
        temperature if drawn else None,
        top_p,
        top_k=top_k,
        max_new_tokens=max_new_tokens,
        eos_ids=eos,
        pad_id=pad_id,
    )


class _State(NamedTuple):
    """`written` tokens of each row are there; `ended` rows get padding."""

    written: Array
    tokens: Array
    lengths: Array
    ended: Array
    cache: Any


@functools.partial(
    jax.jit, static_argnames=("apply", "top_k", "max_new_tokens", "eos_ids", "pad_id")
)
def _generate(
    apply: Step,
    weights: tuple[Any, ...],
    input_ids: Array,
    attention_mask: Array | None,
    keys: Array | None,
    temperature: Array | None,
    top_p: Array | None,
    *,
    top_k: int | None,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
) -> Generated:
    logits, cache = prefill(apply, weights, input_ids, attention_mask, max_new_tokens)

    def write(state: _State, logits: Array, cache: Any) -> _State:
        if keys is None or temperature is None:
            token = jnp.argmax(logits, axis=-1)
        else:
            own = jax.vmap(jax.random.fold_in, (0, None))(keys, state.written)
            token = draw(own, logits, temperature, top_p, top_k)
        token = jnp.where(state.ended, pad_id, token.astype(jnp.int32))
        return _State(
            written=state.written + 1,
            tokens=jax.lax.dynamic_update_slice_in_dim(
                state.tokens, token[:, None], state.written, axis=1
            ),
            lengths=state.lengths + jnp.where(state.ended, 0, 1),
            ended=state.ended | is_among(token, eos_ids),
            cache=cache,
        )

    def goes_on(state: _State) -> Array:
        return (state.written < max_new_tokens) & ~state.ended.all()

    def advance(state: _State) -> _State:
        last = jax.lax.dynamic_slice_in_dim(state.tokens, state.written - 1, 1, axis=1)
        return write(state, *apply(*weights, last, None, state.cache))

    rows = input_ids.shape[0]
    start = _State(
        written=jnp.zeros((), jnp.int32),
        tokens=jnp.full((rows, max_new_tokens), pad_id, jnp.int32),
        lengths=jnp.zeros(rows, jnp.int32),
        ended=jnp.zeros(rows, bool),
        cache=None,
    )
    end = jax.lax.while_loop(goes_on, advance, write(start, logits, cache))
    return Generated(end.tokens, end.lengths)


def draw(
    keys: Array,
    logits: Array,
    temperature: Array | float,
    top_p: Array | float | None = None,
    top_k: int | None = None,
) -> Array:
    """One token for each of (B,) keys and rows of logits (B, vocabulary); see `generate`."""
    categorical = jax.vmap(jax.random.categorical)
    # The largest is subtracted first, so that no temperature makes infinities of both signs.
    scores = (logits - logits.max(-1, keepdims=True)) / temperature
    if top_p is None and top_k is None:
        return categorical(keys, scores)
    words = scores.shape[-1]
    scores, order = jax.lax.top_k(scores, words if top_k is None else min(top_k, words))
    if top_p is not None:
        p = jax.nn.softmax(scores)
        likelier = jnp.cumsum(p, axis=-1) - p
        scores = jnp.where(likelier < top_p, scores, -jnp.inf)
    return jnp.take_along_axis(order, categorical(keys, scores)[:, None], axis=-1)[:, 0]


def prefill(
    apply: Step,
    weights: Sequence[Any],
    input_ids: Array,
    attention_mask: Array | None,
    max_new_tokens: int,
) -> tuple[Array, Any]:
    """The logits (B, vocabulary) after prompts, and a cache with room for what is to follow.

    The last new token is never read, and needs no slot.
    """
    ids, mask = right_aligned(input_ids, attention_mask)
    return apply(*weights, ids, mask, None, capacity=ids.shape[1] + max_new_tokens - 1)


def right_aligned(input_ids: Array, attention_mask: Array | None) -> tuple[Array, Array]:
    """Tokens (B, T) int32 and mask (B, T) of booleans with all padding on the left."""
    if attention_mask is None:
        return input_ids.astype(jnp.int32), jnp.ones(input_ids.shape, bool)
    mask = attention_mask.astype(bool)
    order = jnp.argsort(mask, axis=1, stable=True)
    ids = jnp.take_along_axis(input_ids.astype(jnp.int32), order, axis=1)
    return ids, jnp.take_along_axis(mask, order, axis=1)


def is_among(tokens: Array, ids: Sequence[int]) -> Array:
    """Of each token whether it is one of the ids, booleans of the same shape."""
    known = jnp.asarray(ids, tokens.dtype).reshape((1,) * tokens.ndim + (-1,))
    return (tokens[..., None] == known).any(-1)


def check_request(
    input_ids: Array,
    attention_mask: Array | None,
    max_new_tokens: int,
    eos_ids: int | Sequence[int] | None,
    pad_id: int,
) -> tuple[int, ...]:
    """The ids that end a text; ValueError for prompts or numbers that cannot work."""
    check_integer("max_new_tokens", max_new_tokens, least=1)
    check_integer("pad_id", pad_id, least=0)
    if input_ids.ndim != 2 or 0 in input_ids.shape:
        raise ValueError(f"input_ids must be (batch, tokens), got {input_ids.shape}")
    if attention_mask is not None:
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask must be {input_ids.shape} as input_ids are, "
                f"got {attention_mask.shape}"
            )
        if not isinstance(attention_mask, Tracer):
            empty = np.flatnonzero(~np.asarray(attention_mask).astype(bool).any(1))
            if empty.size:
                raise ValueError(
                    f"prompt {empty[0]} has no token: a text goes on from one at least"
                )
    return eos_tuple(eos_ids)


def eos_tuple(eos_ids: int | Sequence[int] | None) -> tuple[int, ...]:
    """One id, several or None, checked."""
    return token_ids("eos_ids", list(eos_ids) if isinstance(eos_ids, Sequence) else eos_ids)


def _check_draws(
    key: Array | None, temperature: float, top_p: float | None, top_k: int | None, rows: int
) -> None:
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 (the likeliest token) or above, got {temperature}")
    if temperature == 0:
        if top_p is not None or top_k is not None or key is not None:
            raise ValueError(
                "key, top_p and top_k do not act at a temperature of 0: nothing is drawn"
            )
        return
    if key is None:
        raise ValueError("to draw at a temperature above 0 takes a key: jax.random.key(0)")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape not in ((), (rows,)):
        raise ValueError(
            f"key must be a jax.random.key, or {rows} of them, got {key.dtype} of {key.shape}"
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if top_k is not None:
        check_integer("top_k", top_k, least=1)
