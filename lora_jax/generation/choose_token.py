"""The next token of each of several texts, each with its own settings and its own random key."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.methods.checks import require_finite
from lora_jax.models.parts.config_checks import check_integer


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the tokens of one text are chosen. Another value does not recompile.

    The text is the one that `generate(..., key=jax.random.key(seed)[None])` gives with the same
    temperature, `top_p` and `top_k`: token i is drawn with `fold_in(jax.random.key(seed), i)`.

    Args:
        temperature: logits are divided by this before drawing; 0 takes the largest logit.
        top_p: draw from the fewest tokens whose probabilities add up to this, in (0, 1]; 1 (None
            for `generate`) draws from all. It is rounded to the dtype of the logits, and to float32
            unless JAX has 64 bits: 1 - 1e-8 is 1.
        top_k: draw from this many of the likeliest tokens (before `top_p`); 0 (None for `generate`)
            draws from all.
        seed: below 2 ** 32.

    Raises:
        ValueError: for a number out of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        require_finite("temperature", self.temperature)
        require_finite("top_p", self.top_p)
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 or above, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        check_integer("top_k", self.top_k, least=0)
        check_integer("seed", self.seed, least=0, most=2**32 - 1)


GREEDY = Sampling()
"""The likeliest token, always."""


class Settings(NamedTuple):
    """The settings of texts as arrays, each of shape (texts,), or () for one."""

    temperature: Array
    top_p: Array
    top_k: Array
    seed: Array

    @classmethod
    def of(cls, sampling: Sampling) -> "Settings":
        """Those of one text."""
        return cls(
            jnp.asarray(sampling.temperature, float),
            jnp.asarray(sampling.top_p, float),
            jnp.asarray(sampling.top_k, jnp.int32),
            jnp.asarray(sampling.seed, jnp.uint32),
        )


FEW = 1024
"""How many of the likeliest tokens are looked at first, where `top_k` or `top_p` is given."""

FAILED = -1
"""Stands for a token where logits are not numbers."""


def choose(logits: Array, settings: Settings, index: Array, active: Array) -> Array:
    """The next token of each text, (texts,) int32; `FAILED` where the largest logit is not finite.

    Nothing is drawn if no active text asks for it, and nothing sorted.

    Args:
        logits: (texts, vocabulary).
        settings: of each text.
        index: (texts,) integers: which token of its text is next, from 0.
        active: (texts,) booleans; what is given for others has no meaning.
    """
    largest = logits.max(-1, keepdims=True)
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    draws = active & (settings.temperature > 0)
    found = jax.lax.cond(
        draws.any(),
        lambda: _drawn(logits - largest, settings, index, draws),
        lambda: likeliest,
    )
    token = jnp.where(settings.temperature > 0, found, likeliest)
    return jnp.where(jnp.isfinite(largest[:, 0]), token, FAILED)


def _drawn(scores: Array, settings: Settings, index: Array, draws: Array) -> Array:
    """As `generate.draw` for each text, (texts,) int32."""
    keys = jax.vmap(lambda seed, i: jax.random.fold_in(jax.random.key(seed), i))(
        settings.seed, index
    )
    temperature = jnp.where(settings.temperature > 0, settings.temperature, 1)
    scores = scores / temperature.astype(scores.dtype)[:, None]
    cuts = (settings.top_k > 0) | (settings.top_p < 1)

    def from_all() -> Array:
        return jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)

    def from_some() -> Array:
        few = min(FEW, scores.shape[-1])
        total = jnp.exp(scores).sum(-1)
        enough, places = _of_likeliest(few, scores, total, settings, keys)
        # A full sort takes CPUs longer than the model does.
        found = jax.lax.cond(
            (enough | ~(draws & cuts)).all(),
            lambda: places,
            lambda: _of_likeliest(scores.shape[-1], scores, total, settings, keys)[1],
        )
        return jnp.where(cuts, found, from_all())

    return jax.lax.cond((draws & cuts).any(), from_some, from_all)


def _of_likeliest(
    count: int, scores: Array, total: Array, settings: Settings, keys: Array
) -> tuple[Array, Array]:
    """Tokens drawn from the `count` likeliest, and whether no other one could be drawn, (texts,).

    `scores` have 0 as the largest, and `total` is the sum of their exponentials.
    """
    ordered, order = jax.lax.top_k(scores, count)
    top_p = settings.top_p.astype(scores.dtype)
    top_k = jnp.where(settings.top_k < scores.shape[-1], settings.top_k, 0)  # 0: all of them
    kept = jax.vmap(_cut)(ordered, total, top_k, top_p)
    # The generator gives place i the same number, however many places there are.
    places = jax.vmap(jax.random.categorical)(keys, kept)
    found = jnp.take_along_axis(order, places[:, None], axis=-1)[:, 0]
    within = (top_k > 0) & (top_k <= count)
    # The probabilities of more than `count` tokens, but not of all, have a sum that is not known.
    return within | ((top_k == 0) & (kept[:, -1] == -jnp.inf)), found


def _cut(scores: Array, total: Array, top_k: Array, top_p: Array) -> Array:
    """Scores of one text in falling order, (count,), with -inf for what is not to be drawn.

    Right only if `top_k` is at most their number, or 0.
    """
    ranks = jnp.arange(scores.shape[0], dtype=jnp.int32)
    scores = jnp.where((top_k == 0) | (ranks < top_k), scores, -jnp.inf)
    p = jnp.exp(scores)
    p = p / jnp.where(top_k == 0, total, p.sum())
    likelier = jnp.cumsum(p) - p
    return jnp.where((top_p >= 1) | (likelier < top_p), scores, -jnp.inf)
