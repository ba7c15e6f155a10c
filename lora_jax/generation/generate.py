"""Text generation, token by token, greedy or sampled, as one compiled program.

    step, params = cached_step(decoder)
    out = generate(step, (params,), ids, mask, max_new_tokens=40, eos_ids=2, pad_id=0)

    adapted = lj.adapt(forward, variants.make("lora"), targets="all-linear")
    apply = dataclasses.replace(adapted, forward=step).apply
    out = generate(apply, (trainable, frozen), ids, mask, max_new_tokens=40, ...)

The base weights are in memory once. What a variant computes from weights alone (DoRA's norms, NF4's
dequantised numbers) is computed again for every token: if memory allows, call `adapted.merge`
first, which is faster.
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
from lora_jax.models.parts.separate_layers import separate, stacked

CachedApply = Callable[..., tuple[Array, Any]]
"""`apply(*weights, input_ids, attention_mask, cache, capacity=)`, as `CachedStep` of `kv_cache`.

It returns logits and a cache. The cache may be any pytree; for beam search it needs a method
`rows`. On CPUs, a loop over stacked layers (weights below a key `layers`) should be unrolled, as
the layers come from separate arrays (`separate_layers`).
"""


class Generated(NamedTuple):
    """Generated `tokens` (B, max_new_tokens) int32, and `lengths` (B,) int32: tokens of each row.

    The token that ends a text is counted; padding follows it.
    """

    tokens: Array
    lengths: Array


def generate(
    apply: CachedApply,
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
    """Generate text after prompts.

    A program is compiled once for each `apply`, shape and dtype of prompts and weights,
    `max_new_tokens`, `eos_ids`, `pad_id`, `top_k`, and way to choose (greedy, sampled, sampled with
    `top_p`). Keep `apply`: a newly made bound method compiles again. Other weights, temperatures,
    values of `top_p` and keys use the same program. The loop ends as soon as all rows have ended.

    Args:
        apply: the model, step by step (see `CachedApply`).
        weights: the first arguments of `apply`: `(params,)`, or `(trainable, frozen)` of an adapted
            model.
        input_ids: (B, T) integers.
        attention_mask: (B, T), nonzero for a token; padding may be on either side.
        max_new_tokens: the most tokens of a text.
        eos_ids: the tokens that end a text: one, several or None.
        pad_id: the token that fills rows that have ended.
        key: a `jax.random.key`, from which row i takes `fold_in(key, i)`, or (B,) keys, one for
            each row. A row's draws depend on its own key only, not on other rows.
        temperature: logits are divided by this before sampling; 0 takes the largest logit.
        top_p: sample from the fewest tokens whose probabilities add up to this, in (0, 1]
            (Holtzman et al., 2020, arXiv:1904.09751, section 3.1).
        top_k: sample from this many of the likeliest tokens (before `top_p`, as in transformers).

    Raises:
        ValueError: for settings that are invalid or have no effect, and for a prompt without
            tokens.
    """
    eos = check_request(input_ids, attention_mask, max_new_tokens, eos_ids, pad_id)
    _check_draws(key, temperature, top_p, top_k, input_ids.shape[0])
    drawn = temperature > 0
    rows = input_ids.shape[0]
    if drawn and key is not None and key.ndim == 0:
        key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
    return _generate(
        apply,
        separate(tuple(weights)),
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
    """The state of the loop: `written` tokens of each row are set; `ended` rows get padding."""

    written: Array
    tokens: Array
    lengths: Array
    ended: Array
    cache: Any


@functools.partial(
    jax.jit, static_argnames=("apply", "top_k", "max_new_tokens", "eos_ids", "pad_id")
)
def _generate(
    apply: CachedApply,
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
    logits, cache = prefill(apply, stacked(weights), input_ids, attention_mask, max_new_tokens)

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
        # Stacked here: outside of the loop, XLA would make the stack and copy layers out of it.
        return write(state, *apply(*stacked(weights), last, None, state.cache))

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
    """Sample one token (B,) for each of (B,) keys and rows of logits (B, vocabulary)."""
    categorical = jax.vmap(jax.random.categorical)
    # Subtract the largest logit first: then no temperature gives infinities of both signs.
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
    apply: CachedApply,
    weights: Sequence[Any],
    input_ids: Array,
    attention_mask: Array | None,
    max_new_tokens: int,
) -> tuple[Array, Any]:
    """The logits (B, vocabulary) after prompts, and a cache with room for the new tokens.

    The last new token is never fed to the model and needs no slot.
    """
    ids, mask = right_aligned(input_ids, attention_mask)
    return apply(*weights, ids, mask, None, capacity=ids.shape[1] + max_new_tokens - 1)


def right_aligned(input_ids: Array, attention_mask: Array | None) -> tuple[Array, Array]:
    """Move all padding to the left: tokens (B, T) int32 and mask (B, T) of booleans."""
    if attention_mask is None:
        return input_ids.astype(jnp.int32), jnp.ones(input_ids.shape, bool)
    mask = attention_mask.astype(bool)
    order = jnp.argsort(mask, axis=1, stable=True)
    ids = jnp.take_along_axis(input_ids.astype(jnp.int32), order, axis=1)
    return ids, jnp.take_along_axis(mask, order, axis=1)


def is_among(tokens: Array, ids: Sequence[int]) -> Array:
    """Whether each token is one of `ids`: booleans of the same shape."""
    known = jnp.asarray(ids, tokens.dtype).reshape((1,) * tokens.ndim + (-1,))
    return (tokens[..., None] == known).any(-1)


def check_request(
    input_ids: Array,
    attention_mask: Array | None,
    max_new_tokens: int,
    eos_ids: int | Sequence[int] | None,
    pad_id: int,
) -> tuple[int, ...]:
    """Check prompts and settings, and return the ids that end a text; ValueError if invalid."""
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
                raise ValueError(f"prompt {empty[0]} has no token; at least one is needed")
    return eos_tuple(eos_ids)


def eos_tuple(eos_ids: int | Sequence[int] | None) -> tuple[int, ...]:
    """Check `eos_ids` (one id, several or None) and return them as a tuple."""
    return token_ids("eos_ids", list(eos_ids) if isinstance(eos_ids, Sequence) else eos_ids)


def _check_draws(
    key: Array | None, temperature: float, top_p: float | None, top_k: int | None, rows: int
) -> None:
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 (the likeliest token) or above, got {temperature}")
    if temperature == 0:
        if top_p is not None or top_k is not None or key is not None:
            raise ValueError(
                "key, top_p and top_k have no effect at a temperature of 0: nothing is drawn"
            )
        return
    if key is None:
        raise ValueError("a temperature above 0 needs a key, such as jax.random.key(0)")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape not in ((), (rows,)):
        raise ValueError(
            f"key must be a jax.random.key, or {rows} of them, got {key.dtype} of {key.shape}"
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if top_k is not None:
        check_integer("top_k", top_k, least=1)
