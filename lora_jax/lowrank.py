"""What the A/B methods share: W' = W + s A^T B, its product, initialisations and scale rules."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from lora_jax.partition import nearest
from lora_jax.variant import Base, Factors, Variant, wide

SCALES = {
    "alpha/rank": lambda alpha, rank: alpha / rank,  # Hu et al. 2021, section 4.1
    "alpha/sqrt(rank)": lambda alpha, rank: alpha / math.sqrt(rank),  # Kalajdzievski 2023
}


def kaiming_uniform(key: Array, shape: tuple[int, int], dtype: Any) -> Array:
    """U(-1/sqrt(in), 1/sqrt(in)): what the authors' code and PEFT use (kaiming, a = sqrt 5)."""
    bound = 1 / math.sqrt(shape[1])
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def gaussian(key: Array, shape: tuple[int, int], dtype: Any) -> Array:
    """N(0, 1/rank^2): PEFT's reading of the paper's "random Gaussian initialization for A"."""
    return jax.random.normal(key, shape, dtype) / shape[0]


INITIALIZATIONS = {"kaiming_uniform": kaiming_uniform, "gaussian": gaussian}


def product(x: Array, a: Array, b: Array, accumulate: Any = None) -> Array:
    """`(x @ a.T) @ b` for x (..., in), a (rank, in), b (rank, out).

    The short side comes first, so that reverse mode multiplies `gh @ x` instead of transposing the
    activations, and tokens are flattened to one axis: together up to 2x of a training step.
    """
    flat = x
    if x.ndim != 2 and not _inner_axis_sharded(x):
        flat = x.reshape(-1, x.shape[-1])
    hidden = lax.dot_general(a, flat, (((1,), (flat.ndim - 1,)), ((), ())))
    y = lax.dot_general(hidden, b, (((0,), (0,)), ((), ())), preferred_element_type=accumulate)
    return y.reshape(*x.shape[:-1], b.shape[1])


def _inner_axis_sharded(x: Array) -> bool:
    """Whether an explicitly sharded token axis other than the first forbids flattening."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    spec = tuple(getattr(sharding, "spec", None) or ())
    return any(axis is not None for axis in spec[1 : x.ndim - 1])


def dropout(x: Array, keep: Array, key: Array) -> Array:
    """Zero each entry with probability `1 - keep` and scale the rest by `1 / keep`."""
    mask = jax.random.bernoulli(key, keep, x.shape)
    return jnp.where(mask, x / keep.astype(x.dtype), jnp.zeros((), x.dtype))


@dataclasses.dataclass(frozen=True)
class LowRank(Variant):
    """A variant with W' = W + scale * A^T B, A of shape (rank, in) and B (rank, out).

    B is stored with the rank first, so that both factors are short and wide; PEFT's `lora_B` is its
    transpose. Settings that papers combine are fields here, so that every A/B method has them; a
    method overrides what it does differently.
    """

    rank: int = 8
    alpha: float = 16.0
    scale: str = "alpha/rank"
    initialization: str = "kaiming_uniform"
    """How A starts; B starts at zero, so that W' = W."""
    dropout: float = 0.0
    """Probability of dropping an entry of the adapter's input while a `dropout_key` is given."""
    max_rank: int | None = None
    """Rows to allocate, where they are more than `rank`; a 0/1 mask hides the others."""

    def __post_init__(self) -> None:
        for name, known in (("scale", SCALES), ("initialization", INITIALIZATIONS)):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} '{value}' is unknown; nearest: {nearest(value, known)}")
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank must be an integer of at least 1, got {self.rank!r}")
        if not isinstance(self.alpha, int | float) or not math.isfinite(self.alpha):
            raise ValueError(f"alpha must be a finite number, got {self.alpha!r}")
        if self.max_rank is not None and self.max_rank < self.rank:
            raise ValueError(f"max_rank {self.max_rank} is below rank {self.rank}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    def validate(self, shape: tuple[int, int]) -> None:
        if self.rank > min(shape):
            raise ValueError(f"rank {self.rank} exceeds min(in, out) = {min(shape)} of {shape}")

    def init(self, key: Array, base: Base) -> Factors:
        inputs, outputs = base.shape
        dtype = wide(base.dtype)
        rows = self.max_rank or self.rank
        a = INITIALIZATIONS[self.initialization](key, (self.rank, inputs), dtype)
        constants = {"scale": jnp.asarray(SCALES[self.scale](self.alpha, self.rank), dtype)}
        if self.dropout:
            constants["keep"] = jnp.asarray(1 - self.dropout, dtype)
        if self.max_rank is not None:
            a = jnp.zeros((rows, inputs), dtype).at[: self.rank].set(a)
            constants["mask"] = (jnp.arange(rows) < self.rank).astype(dtype)
        return Factors({"a": a, "b": jnp.zeros((rows, outputs), dtype)}, constants)

    def scaled_b(self, factors: Factors) -> Array:
        """`scale * B`, rows beyond the rank hidden: the scale costs least where it is applied."""
        scale = factors.constants["scale"]
        if "mask" in factors.constants:
            scale = (scale * factors.constants["mask"])[:, None]
        return scale * factors.trainable["b"]

    def delta(self, factors: Factors) -> Array:
        """The dense (in, out) update of W, `scale * A^T B`."""
        return factors.trainable["a"].T @ self.scaled_b(factors)

    def weight(self, base: Base, factors: Factors) -> Array:
        delta = self.delta(factors)
        return base.dense().astype(delta.dtype) + delta

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        dropped = x
        if dropout_key is not None and "keep" in factors.constants:
            dropped = dropout(x, factors.constants["keep"], dropout_key)
        a, b = self.low_rank_factors(factors, x.dtype)
        return base.dot(x) + product(dropped, a, b, base.accumulate)

    def dot_t(self, x: Array, base: Base, factors: Factors) -> Array:
        a, b = self.low_rank_factors(factors, x.dtype)
        return base.dot_t(x) + product(x, b, a, base.accumulate)

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        a, b = self.low_rank_factors(factors, base.dtype)
        hidden = jnp.take(a, rows, axis=1, mode="clip")
        return base.take(rows) + lax.dot_general(hidden, b, (((0,), (0,)), ((), ())))

    def low_rank_factors(self, factors: Factors, dtype: Any) -> tuple[Array, Array]:
        """A (rank, in) and scaled B (rank, out), so that `delta = A^T B`, cast to `dtype`."""
        return factors.trainable["a"].astype(dtype), self.scaled_b(factors).astype(dtype)

    def count(self, shape: tuple[int, int]) -> int:
        return self.rank * sum(shape)

    def align(self, others: tuple[Variant, ...]) -> tuple[Variant, ...]:
        ranked = [each for each in others if type(each) is type(self)]
        if len(ranked) == len(others):
            free = {"rank": self.rank, "alpha": self.alpha, "max_rank": None}
            if all(dataclasses.replace(v, **free) == dataclasses.replace(self, max_rank=None)
                   for v in ranked):  # fmt: skip
                rows = max(v.max_rank or v.rank for v in ranked)
                return tuple(dataclasses.replace(v, max_rank=rows) for v in ranked)
        return super().align(others)
