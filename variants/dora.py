"""DoRA: magnitude and direction of each output are trained apart.

Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353, equations 5
and 11. The norm without a dense matrix: "Scaling DoRA", arXiv 2603.22276.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from lora_jax.lowrank import LowRank
from lora_jax.variant import Base, Factors, wide


@dataclasses.dataclass(frozen=True)
class DoRA(LowRank):
    """W' = m * V / ||V||, V = W + s A^T B, with one trained magnitude m for each output (column).

    Differences from plain LoRA: the magnitudes, which start as the norms of W's columns, so that
    W' = W. The norm is a constant for reverse mode (section 4.3; `detach_norm=False` for the full
    gradient). It is computed in float32 at least and without V, from
    ||V||^2 = ||W||^2 + 2 s <A W, B> + s^2 <A A^T B, B>, column by column, ||W||^2 a constant.

    With dropout, y = g (x W + s drop(x) A^T B), g = m / ||V||: the base term sees no dropped input.
    The authors' code and PEFT compute x W + (g - 1) drop(x) W + g s drop(x) A^T B, which drops
    entries of a part of the base term too, and multiplies by W twice.

    A column of W that is zero has m = 0, and stays zero until m moves (PEFT divides zero by zero).
    """

    detach_norm: bool = True
    """Whether the norm is a constant for reverse mode, as in the paper's experiments."""

    def init(self, key: Array, base: Base) -> Factors:
        trainable, constants = super().init(key, base)
        squares = jnp.square(base.dense().astype(wide(base.dtype))).sum(axis=0)
        factors = Factors(trainable, {**constants, "squares": squares})
        return Factors({**trainable, "m": self._norm(base, factors)}, factors.constants)

    def weight(self, base: Base, factors: Factors) -> Array:
        direction = super().weight(base, factors)
        norm = _root(jnp.square(direction).sum(axis=0))
        norm = lax.stop_gradient(norm) if self.detach_norm else norm
        return direction * (factors.trainable["m"] / norm)[None, :]

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        y = super().dot(x, base, factors, dropout_key=dropout_key)
        return y * self._gain(base, factors, y.dtype, y.ndim)

    def dot_t(self, x: Array, base: Base, factors: Factors) -> Array:
        return super().dot_t(x * self._gain(base, factors, x.dtype, x.ndim), base, factors)

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        y = super().take(rows, base, factors)
        return y * self._gain(base, factors, y.dtype, y.ndim)

    def count(self, shape: tuple[int, int]) -> int:
        return super().count(shape) + shape[1]

    def _gain(self, base: Base, factors: Factors, dtype: Any, ndim: int) -> Array:
        """m / ||V||, as what multiplies an array (..., out) of `ndim` axes."""
        gain = factors.trainable["m"] / self._norm(base, factors)
        return gain.astype(dtype).reshape(*[1] * (ndim - 1), -1)

    def _norm(self, base: Base, factors: Factors) -> Array:
        """The norm of each column of V, (out,), without V."""
        squares = factors.constants["squares"]
        if self.detach_norm:
            factors = lax.stop_gradient(factors)
        a, b = self.low_rank_factors(factors, squares.dtype)
        cross = _times_base(a, base, squares.dtype)
        gram = jnp.matmul(a, a.T, precision="highest")
        inner = 2 * cross + jnp.matmul(gram, b, precision="highest")
        return _root(squares + (inner * b).sum(axis=0))


def _root(squares: Array) -> Array:
    """The root, kept off zero, where it has no derivative and m / ||V|| no value."""
    return jnp.sqrt(jnp.maximum(squares, jnp.finfo(squares.dtype).tiny))


def _times_base(a: Array, base: Base, dtype: Any) -> Array:
    """`a @ W` (rank, out) in the dtype of `a`, also where W's is narrower.

    Then `a` is split into three terms of W's dtype, whose products are exact when summed in
    `dtype`: W itself is never cast, and no matrix of its size is made.
    """
    if base.dtype == a.dtype:
        return dataclasses.replace(base, accumulate=None).dot(a)
    terms, rest = [], a
    for _ in range(3):
        terms.append(rest.astype(base.dtype))
        rest = rest - terms[-1].astype(a.dtype)
    products = dataclasses.replace(base, accumulate=a.dtype).dot(jnp.concatenate(terms))
    return products.reshape(3, *a.shape[:1], -1).sum(axis=0)
