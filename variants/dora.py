"""DoRA: magnitude and direction of each output are trained apart.

Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353, equations 5 and
11. The norm without a dense matrix: "Scaling DoRA", arXiv 2603.22276. For W of shape (in, out),
used as x @ W, and norms of columns,

    W' = m * V / ||V||,    V = W + s A^T B.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax import Array, lax

from lora_jax.methods import peft_lora
from lora_jax.methods.lowrank import LowRank
from lora_jax.methods.products import add, dropout, product, times
from lora_jax.peft_format import Peft, Settings
from lora_jax.variant import Base, Factors, Operand, wide


@dataclasses.dataclass(frozen=True)
class DoRA(LowRank):
    """One magnitude m is trained for each output (column), beside A and B.

    Differences from plain LoRA: the magnitudes, which start as the norms of W's columns, so that
    W' = W. The norm is a constant for reverse mode (section 4.3; `detach_norm=False` for the full
    gradient). It is computed in float32 at least and without V, from
    ||V||^2 = ||W||^2 + 2 s <A W, B> + s^2 <A A^T B, B>, column by column, ||W||^2 a constant.

    With dropout, y = g (x W + s drop(x) A^T B), g = m / ||V||: the base term sees no dropped input.
    The authors' code and PEFT compute x W + (g - 1) drop(x) W + g s drop(x) A^T B, which drops
    entries of a part of the base term too, and multiplies by W twice.

    A column of W that is zero starts with a magnitude close to zero; PEFT divides zero by zero
    there. The norm loses digits where the adapter cancels W: its relative error is about one
    rounding error times (||W|| / ||V||)^2.
    """

    peft: ClassVar[str] = "LoraConfig(use_dora=True)"
    additive: ClassVar[bool] = False
    of_base: ClassVar[tuple[str, ...]] = ("squares",)

    detach_norm: bool = True
    """Whether the norm is a constant for reverse mode, as in the paper's experiments."""

    def init(self, key: Array, base: Base) -> Factors:
        trainable, constants = super().init(key, base)
        squares = jnp.square(base.dense().astype(wide(base.dtype))).sum(axis=0)
        # Not from `norm`, which is the same at the start: XLA's CPU backend makes NaN of its
        # products where B is a constant zero and layers are stacked.
        return Factors({**trainable, "m": _root(squares)}, {**constants, "squares": squares})

    def weight(self, base: Base, factors: Factors) -> Array:
        direction = super().weight(base, factors)
        norm = _root(jnp.square(direction).sum(axis=0))
        norm = lax.stop_gradient(norm) if self.detach_norm else norm
        return direction * (factors.trainable["m"] / norm)[None, :]

    def as_lora(self, base: Base, factors: Factors) -> tuple[Array, Array] | None:
        return None

    def as_rescaled_lora(
        self, base: Base, factors: Factors
    ) -> tuple[Array, Array, Array | None] | None:
        a, b = self.low_rank_factors(factors, wide(base.dtype))
        return a, b, factors.trainable["m"] / self.norm(base, factors)

    def to_peft(self, base: Base, factors: Factors, lookup: bool = False) -> Peft | None:
        a, b = self.low_rank_factors(factors, wide(base.dtype))
        return self._as_peft(a, b, factors, lookup, use_dora=True)

    @classmethod
    def from_peft(cls, config: Settings) -> "DoRA | None":
        fields = peft_lora.fields_of(config, dora=True)
        return None if fields is None else cls(**fields)

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        a, b = self.low_rank_factors(factors, x.dtype)
        # Together with the norm's own product, so that a quantised W is made dense once for both.
        y, parts = base.dots(Operand(x, base.accumulate), self._norm_operand(base, factors))
        y = add(y, product(dropout(x, factors, dropout_key), a, b, base.accumulate))
        return times(y, factors.trainable["m"] / self._norm_from(factors, parts))

    def dot_t(self, x: Array, base: Base, factors: Factors) -> Array:
        gain = factors.trainable["m"] / self.norm(base, factors)
        return super().dot_t(times(x, gain), base, factors)

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        gain = factors.trainable["m"] / self.norm(base, factors)
        return times(super().take(rows, base, factors), gain)

    def count(self, shape: tuple[int, int]) -> int:
        return super().count(shape) + shape[1]

    def norm(self, base: Base, factors: Factors) -> Array:
        """||V|| of each column, (out,), without V."""
        (parts,) = base.dots(self._norm_operand(base, factors))
        return self._norm_from(factors, parts)

    def _norm_operand(self, base: Base, factors: Factors) -> Operand:
        """What the norm needs multiplied by W: A (rank, in).

        If W's dtype is narrower, A is split into three terms of W's dtype, one after the other.
        Their products are exact when summed in A's dtype. So W is never cast, and no matrix of its
        size is made.
        """
        a, _ = self._factors_of_norm(factors)
        if base.dtype == a.dtype:
            return Operand(a, precision="highest")
        terms, rest = [], a
        for _ in range(3):
            terms.append(rest.astype(base.dtype))
            rest = rest - terms[-1].astype(a.dtype)
        return Operand(jnp.concatenate(terms), accumulate=a.dtype, precision="highest")

    def _norm_from(self, factors: Factors, parts: Array) -> Array:
        """The norm, from the product of `_norm_operand` with W."""
        squares = factors.constants["squares"]
        a, b = self._factors_of_norm(factors)
        cross = parts.reshape(-1, *b.shape).sum(axis=0)
        gram = jnp.matmul(a, a.T, precision="highest")
        inner = 2 * cross + jnp.matmul(gram, b, precision="highest")
        square = squares + (inner * b).sum(axis=0)
        # Where V nearly vanishes, rounding can take the difference below zero.
        return _root(jnp.maximum(square, jnp.finfo(square.dtype).eps * squares))

    def _factors_of_norm(self, factors: Factors) -> tuple[Array, Array]:
        if self.detach_norm:
            factors = lax.stop_gradient(factors)
        return self.low_rank_factors(factors, factors.constants["squares"].dtype)


def _root(squares: Array) -> Array:
    """The square root, kept off zero, where it has no derivative and m / ||V|| has no value."""
    return jnp.sqrt(jnp.maximum(squares, jnp.finfo(squares.dtype).tiny))
