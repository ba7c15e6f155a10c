"""Sketches of what a weight meets in use: its gradient, or the covariance of its inputs.

A probe takes the place of an adapter. The gradient of a loss by its trainables, which are zero, is
the product of a matrix S with a given basis, summed over all uses of the weight. So it passes
through loops, `vmap` and recomputation like any gradient, and S itself is never formed.

Several passes make the basis better: S times the basis of one pass gives the basis of the next, as
in a randomised SVD (Halko et al. 2011, "Finding structure with randomness", algorithm 4.4).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.explicit_sharding import replicated
from lora_jax.methods.lowrank import LowRank
from lora_jax.statistics import SeenGradient, SeenInputs
from lora_jax.variant import Base, Factors, Variant

Sums = dict[str, Array]
"""A probe's gradients of one matrix, summed over batches; or its basis."""
Numbers = dict[str, np.ndarray]
"""The same by NumPy, in float64, with stacked axes first."""


@dataclasses.dataclass(frozen=True)
class GradientProbe(LowRank):
    """S = dL/dW (in, out): W + A^T B has the gradients B S^T by A, and A S by B.

    One of A and B is zero and trained, the other one is the basis; `rank` is its size.
    """

    directions: int = 1
    """How many directions to give, at most `rank`."""
    shape: tuple[int, int] = (1, 1)
    """(in, out) of the matrix."""
    dtype: Any = None
    """That of all sums."""

    def start(self, key: Array) -> Sums:
        """A basis of outputs to begin with."""
        return {"b": jax.random.normal(key, (self.rank, self.shape[1]), self.dtype)}

    def factors(self, basis: Sums) -> Factors:
        """The factors of a pass, given a basis of outputs (`b`) or of inputs (`a`)."""
        ((name, rows),) = basis.items()
        other, size = ("a", self.shape[0]) if name == "b" else ("b", self.shape[1])
        zeros = jnp.zeros((self.rank, size), rows.dtype)
        return Factors({other: zeros}, {name: rows, "scale": jnp.ones((), rows.dtype)})

    def next(self, basis: Numbers, sums: Numbers) -> Numbers:
        """The basis of the next pass, for the other side."""
        return {name: _orthonormal(rows) for name, rows in sums.items()}

    def seen(self, basis: Numbers, sums: Numbers) -> SeenGradient:
        """The leading singular triplets, from a pass with a basis of inputs."""
        u, values, right = np.linalg.svd(sums["b"], full_matrices=False)
        n = self.directions
        left = u[..., :n].swapaxes(-1, -2) @ basis["a"]
        found: Any = left, values[..., :n], right[..., :n, :]
        return SeenGradient(*found)


@dataclasses.dataclass(frozen=True)
class InputProbe(Variant):
    """S = the sum of d d^T over all inputs x of a weight, with d = x - center.

    The weight itself is not adapted. What is summed depends on the inputs alone, not on the loss.
    """

    rank: int
    """The size of the basis."""
    directions: int
    """How many directions to give, at most `rank`."""
    shape: tuple[int, int]
    """(in, out) of the matrix."""
    dtype: Any
    """That of all sums."""
    path: str
    """The weight's, for messages."""
    constant_inputs: bool = False
    """Whether some of its inputs are the same for all batches (`WeightUse`)."""
    head: bool = False
    """Whether it is an output head, all of whose inputs count."""

    def start(self, key: Array) -> Sums:
        basis = jax.random.normal(key, (self.rank, self.shape[0]), self.dtype)
        return {"basis": basis, "center": jnp.zeros_like(basis[0])}

    def factors(self, basis: Sums) -> Factors:
        vector, number = basis["center"], jnp.zeros_like(basis["center"][0])
        sums = {"sketch": jnp.zeros_like(basis["basis"])}
        sums |= dict.fromkeys(("sum", "magnitude"), jnp.zeros_like(vector))
        return Factors(sums | dict.fromkeys(("squares", "count"), number), basis)

    def next(self, basis: Numbers, sums: Numbers) -> Numbers:
        center = basis["center"] + sums["sum"] / sums["count"][..., None]
        return {"basis": _orthonormal(_centered(basis, sums)), "center": center}

    def seen(self, basis: Numbers, sums: Numbers) -> SeenInputs:
        """The leading principal components."""
        count, n = sums["count"], self.directions
        mean = sums["sum"] / count[..., None]
        _, values, directions = np.linalg.svd(_centered(basis, sums), full_matrices=False)
        found: Any = {
            "directions": directions[..., :n, :],
            "variances": values[..., :n] / count[..., None],
            "variance": sums["squares"] / count - np.square(mean).sum(axis=-1),
            "mean": basis["center"] + mean,
            "magnitude": sums["magnitude"] / count[..., None],
        }
        return SeenInputs(**found)

    def weight(self, base: Base, factors: Factors) -> Array:
        return base.dense()

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        basis = dict(factors.constants)
        counts = self._counts(basis.pop("counts", None), x.shape[:-1])
        return base.dot(_observed(x, factors.trainable, basis, counts))

    def dot_t(self, x: Array, base: Base, factors: Factors) -> Array:
        return base.dot_t(x)

    def _counts(self, counts: Array | None, rows: tuple[int, ...]) -> Array:
        """How often each input counts, given that of each token, for inputs (*rows, in)."""
        once = jnp.ones(rows, self.dtype)
        if counts is None or self.head:
            return once
        counts = replicated(counts).astype(self.dtype)
        axes = counts.ndim
        if rows[:axes] == counts.shape:
            return once * counts.reshape(*counts.shape, *[1] * (len(rows) - axes))
        if rows == (counts.size,):
            return counts.reshape(rows)
        if self.constant_inputs:
            return once
        if rows and rows == counts.shape[: len(rows)]:
            return counts.max(axis=tuple(range(len(rows), axes)))
        raise ValueError(
            f"'{self.path}': counts of shape {counts.shape} do not say which of its inputs, of "
            f"shape {(*rows, self.shape[0])}, count"
        )


@jax.custom_vjp
def _observed(x: Array, sums: Sums, basis: Sums, counts: Array) -> Array:
    """x itself; by `sums`, the gradient of whatever follows is what is summed of x."""
    return x


def _forward(
    x: Array, sums: Sums, basis: Sums, counts: Array
) -> tuple[Array, tuple[Array, Sums, Array]]:
    return x, (x, basis, counts)


def _backward(kept: tuple[Array, Sums, Array], gradient: Array) -> tuple[Array, Sums, Sums, Array]:
    x, basis, counts = kept
    x = replicated(x).reshape(-1, x.shape[-1]).astype(basis["center"].dtype)
    weights = counts.reshape(-1, 1)
    x = jnp.where(weights > 0, x, 0)  # what does not count need not be finite
    d = x - basis["center"][None]
    sums = {
        "sketch": (d @ basis["basis"].T).T @ (weights * d),
        "sum": (weights * d).sum(axis=0),
        "magnitude": (weights * jnp.abs(x)).sum(axis=0),
        "squares": (weights * jnp.square(d)).sum(),
        "count": weights.sum(),
    }
    return gradient, sums, *jax.tree.map(jnp.zeros_like, (basis, counts))


_observed.defvjp(_forward, _backward)


def _centered(basis: Numbers, sums: Numbers) -> np.ndarray:
    """The basis times the sum of (x - mean) (x - mean)^T."""
    total, count = sums["sum"][..., None, :], sums["count"][..., None, None]
    along = basis["basis"] @ total.swapaxes(-1, -2)
    return sums["sketch"] - along * total / count


def _orthonormal(rows: np.ndarray) -> np.ndarray:
    """Orthonormal rows that span the given ones."""
    return np.linalg.qr(rows.swapaxes(-1, -2))[0].swapaxes(-1, -2)
