"""Hold trials of several ranks in factors of one shape: widen, mask, and narrow them again."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.methods.lowrank import LowRank
from lora_jax.transform.placement import Frozen, Trainable, group_of
from lora_jax.variant import Base, Factors, Variant


def share(frozen: Frozen, first: Frozen) -> Frozen:
    """A trial's `frozen` with the arrays of another's base, wherever both hold the same values."""

    def either(own: Array, other: Array) -> Array:
        alike = own is other or (own.shape == other.shape and bool((own == other).all()))
        return other if alike else own

    return dataclasses.replace(frozen, base=jax.tree.map(either, frozen.base, first.base))


def union(variants: Sequence[Variant]) -> Variant:
    """The variant of a program, with factors large enough for all these variants."""
    return held(variants[0], rows_of(variants))


def held(variant: Variant, rows: int | None) -> Variant:
    """The variant with factors of `rows` rows, where those beyond its rank are masked.

    If `rows` is None or the variant cannot have them, it is returned as it is.
    """
    if rows is None or not isinstance(variant, LowRank):
        return variant
    try:
        return dataclasses.replace(variant, max_rank=rows)
    except Exception:  # from a user's code
        return variant


def rows_of(variants: Sequence[Variant]) -> int | None:
    """The most rows of factors if ranks differ; None if they do not."""
    ranks = {(v.rank, v.max_rank or v.rank) for v in variants if isinstance(v, LowRank)}
    return max(most for _, most in ranks) if len(ranks) > 1 else None


def widen(
    trainable: Trainable, frozen: Frozen, like: tuple[Trainable, Frozen]
) -> tuple[Trainable, Frozen]:
    """A trial's adapters in the structure of a program that holds larger ones.

    Rows beyond a trial's rank are zero and masked.

    Args:
      like: the program's trainables and frozen part, as arrays or shapes.
    """
    shapes, target = like
    constants = {}
    for each in target.spec.adapted:
        path = each.use.path
        variant = group_of(next(p for p in frozen.spec.adapted if p.use.path == path))
        constants[path] = {
            name: _constant(name, frozen.constants[path], shape, getattr(variant, "rank", 0))
            for name, shape in target.constants[path].items()
        }
    shared = jax.tree.map(_pad, frozen.shared, target.shared)
    wide = jax.tree.map(_pad, trainable, shapes)
    return wide, Frozen(frozen.base, constants, target.spec, shared)


def narrow(tree: Any, like: Any) -> Any:
    """Remove the padding of `widen`: cut every leaf to the shape of `like`'s."""
    return jax.tree.map(lambda leaf, to: leaf[tuple(map(slice, to.shape))], tree, like)


def same_when_masked(variant: Variant, wide: Variant, shape: tuple[int, int]) -> bool:
    """Whether a variant computes the same in factors of more rows, those beyond its rank masked.

    Tested with random factors of an (in, out) matrix: all results of the variant's methods, and
    gradients, which must be zero beyond the rank. State that a variant carries from step to step is
    not tested: a variant with its own `update` or `init_state` gives False.
    """
    kind = type(variant)
    if kind.update is not Variant.update or kind.init_state is not Variant.init_state:
        return False
    keys = jax.random.split(jax.random.key(0), 4)
    base = Base(jax.random.normal(keys[0], shape), "io")
    try:
        own, like = (_begun(each, keys[1], base) for each in (variant, wide))
        own = Factors(jax.tree.map(lambda x: jax.random.normal(keys[2], x.shape), own[0]), own[1])
        rank = getattr(variant, "rank", 0)
        more = Factors(
            jax.tree.map(_pad, own.trainable, like.trainable),
            {n: _constant(n, own.constants, x, rank) for n, x in like.constants.items()},
        )
        here, there = (_values(*each, base, keys[3]) for each in ((variant, own), (wide, more)))
        padded = jax.tree.map(_pad, here, there)
        close = jax.tree.map(lambda x, y: jnp.allclose(x, y, rtol=1e-4, atol=1e-4), padded, there)
    except Exception:  # a user's code may fail in a structure that it does not know
        return False
    return all(map(bool, jax.tree.leaves(close)))


def _begun(variant: Variant, key: Array, base: Base) -> Factors:
    """The starting factors; what the variant would see in data is drawn at random."""
    if (need := variant.needs) is None:
        return variant.init(key, base)
    shapes = need.shapes(base.shape, base.dtype)
    seen = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape, leaf.dtype), shapes)
    return variant.init(key, dataclasses.replace(base, seen=seen))


def _values(variant: Variant, factors: Factors, base: Base, key: Array) -> Any:
    """All that a variant computes, the gradient of a number made of it, and what goes with that:
    what the optimiser gets for the gradient, and the learning rates.
    """
    x, y = (jax.random.normal(key, (3, size)) for size in base.shape)

    def total(trainable: dict[str, Array]) -> tuple[Array, Any]:
        mine = Factors(trainable, factors.constants)
        made = {
            "weight": variant.weight(base, mine),
            "dot": variant.dot(x, base, mine),
            "dropped": variant.dot(x, base, mine, dropout_key=key),
            "dot_t": variant.dot_t(y, base, mine),
            "take": variant.take(jnp.arange(3) % base.shape[0], base, mine),
            "penalty": jnp.asarray(variant.penalty({"": mine}), float),
        }
        return sum((jnp.sin(each).sum() for each in made.values()), jnp.zeros(())), made

    rates = jax.tree.map(jnp.asarray, dict(variant.learning_rates({"": factors.constants})))
    computed, gradients = jax.value_and_grad(total, has_aux=True)(factors.trainable)
    return computed, gradients, variant.precondition(gradients, factors), rates


def _constant(name: str, own: Mapping[str, Array], like: Any, rank: int) -> Array:
    if name != "mask" or name in own:
        return _pad(own[name], like)
    return jnp.broadcast_to((jnp.arange(like.shape[-1]) < rank).astype(like.dtype), like.shape)


def _pad(leaf: Array, like: Any) -> Array:
    if leaf.shape == like.shape:
        return leaf
    return jnp.pad(leaf, [(0, to - own) for own, to in zip(leaf.shape, like.shape, strict=True)])
