"""Gradients of A and B, changed before the optimiser sees them, by matrices of the rank's size.

For W' = W + s A^T B, with A (rank, in), B (rank, out) and the gradient G (in, out) of W', those of
the factors are g_A = s B G^T and g_B = s A G. M^-1 stands for (M + d I)^-1, as B may be zero.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.messages import require_known
from lora_jax.methods.checks import require_finite
from lora_jax.methods.decompositions import eigh

Gradients = Mapping[str, Array]
"""`a` (rank, in) and `b` (rank, out); one of them if the other is frozen (LoRA-FA)."""
Preconditioner = Callable[[Gradients, Array, Array, Array, Array], dict[str, Array]]
"""`(gradients, A, B, s, d) -> gradients`."""


def riemannian(
    gradients: Gradients, a: Array, b: Array, scale: Array, damping: Array
) -> dict[str, Array]:
    """(B B^T)^-1 g_A and (A A^T)^-1 g_B.

    Zhang and Pilanci 2024, "Riemannian Preconditioned LoRA for Fine-Tuning Foundation Models",
    arXiv 2402.02347.
    """
    others = {"a": b, "b": a}
    return {name: _Gram.of(others[name], damping).solve(g) for name, g in gradients.items()}


def lora_pro(
    gradients: Gradients, a: Array, b: Array, scale: Array, damping: Array
) -> dict[str, Array]:
    """The dA and dB whose effect on W', s (dA^T B + A^T dB), is as close to G as it can be.

    dA = (B B^T)^-1 g_A / s^2 + X A and dB = (A A^T)^-1 g_B (I - P) / s^2 - X^T B, with
    P = B^T (B B^T)^-1 B. Every X has the same effect. This one keeps dA and dB as close to g_A and
    g_B as it can: B B^T X + X A A^T = -(B B^T)^-1 g_A A^T / s^2. With a frozen A, dB is
    (A A^T)^-1 g_B / s^2.

    Wang et al. 2024, "LoRA-Pro: Are Low-Rank Adapters Properly Optimized?", arXiv 2407.18242,
    section 2.
    """
    alone = {name: g / scale**2 for name, g in riemannian(gradients, a, b, scale, damping).items()}
    if len(alone) == 1:
        return alone
    of_a, of_b = _Gram.of(a, damping), _Gram.of(b, damping)
    sums = of_b.values[:, None] + of_a.values[None, :]
    right = of_b.vectors.T @ (alone["a"] @ a.T) @ of_a.vectors
    x = -of_b.vectors @ (right / sums) @ of_a.vectors.T
    inside = of_b.solve(b @ alone["b"].T).T
    return {"a": alone["a"] + x @ a, "b": alone["b"] - (inside + x.T) @ b}


LORA_PRO = "lora_pro"
PRECONDITIONERS: dict[str, Preconditioner] = {"riemannian": riemannian, LORA_PRO: lora_pro}
NONE = "none"
"""The name that leaves gradients as they are."""


def precondition(
    name: str, gradients: Gradients, a: Array, b: Array, scale: Array, damping: Array
) -> dict[str, Array]:
    """The gradients that a preconditioner makes of those of A and B, by its name.

    Products are as exact as their dtype, whatever the model's are.
    """
    with jax.default_matmul_precision("highest"):
        return PRECONDITIONERS[name](gradients, a, b, scale, damping)


def validate(name: str, damping: float, alpha: float) -> None:
    """Raise a `ValueError` if a preconditioner is unknown or cannot work."""
    require_known(name, (NONE, *PRECONDITIONERS), f"preconditioner '{name}' is unknown")
    require_finite("damping", damping)
    if damping < jnp.finfo(jnp.float32).tiny:
        raise ValueError(f"damping must be above 0 in float32, got {damping}")
    if name == LORA_PRO and alpha == 0:
        raise ValueError("preconditioner 'lora_pro' divides by the scale: alpha must not be 0")


class _Gram(NamedTuple):
    """The eigenvalues and eigenvectors of X X^T + d I, for an X (rank, size)."""

    values: Array
    vectors: Array

    @classmethod
    def of(cls, x: Array, damping: Array) -> "_Gram":
        values, vectors = eigh(x @ x.T)
        # Smaller eigenvalues are rounding errors, which may be below zero.
        least = len(values) * jnp.finfo(values.dtype).eps * values[-1]
        return cls(jnp.maximum(values, least) + damping, vectors)

    def solve(self, right: Array) -> Array:
        """(X X^T + d I)^-1 times `right` (rank, n)."""
        return self.vectors @ ((self.vectors.T @ right) / self.values[:, None])
