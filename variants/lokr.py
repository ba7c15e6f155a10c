"""LoKr: the update is a Kronecker product of two small matrices.

Yeh et al. 2023, "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model
Evaluation", arXiv 2309.14859; after Edalati et al. 2022, "KronA", arXiv 2212.10650.
With in = m n and out = l k, C of shape (m, l) and D of shape (n, k),

    W' = W + s (C kron D),    x W' = x W + s sum_mn x[m, n] C[m, l] D[n, k].
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.methods.checks import require_dropout, require_finite, require_rank
from lora_jax.methods.products import add, dropout, dropout_constants
from lora_jax.peft_format import Config, Layouts, same, transposed
from lora_jax.variant import Base, Factors, Variant, wide


@dataclasses.dataclass(frozen=True)
class LoKr(Variant):
    """W' = W + s (C kron A^T B), s = alpha / rank: A (rank, n), B (rank, k), D = A^T B.

    Differences from plain LoRA: far fewer numbers for an update of rank up to that of C times
    `rank`. C starts at zero; A and B do not. D is one matrix where `rank` is at least half of its
    longer side, and then the rank matters for s alone. No dense matrix is formed: x is multiplied
    by A, C and B, one after the other.

    Equal to PEFT's LoKr (`init_weights=True`); PEFT forms the dense update, and drops whole outputs
    of it or all of it (`rank_dropout`, `module_dropout`), where `dropout` here drops inputs.
    LyCORIS draws C and starts B at zero, and has s = 1 where neither C nor D is factored.
    """

    peft: ClassVar[str] = "LoKrConfig"
    peft_layouts: ClassVar[Layouts] = {
        "c": transposed("lokr_w1"),
        "ca": same("lokr_w1_b"),
        "cb": transposed("lokr_w1_a"),
        "d": transposed("lokr_w2"),
        "a": same("lokr_w2_b"),
        "b": transposed("lokr_w2_a"),
    }
    peft_config: ClassVar[Config] = Config(
        "LOKR",
        {
            **{"r": ("rank", 8), "alpha": ("alpha", 8.0)},
            **{"decompose_both": ("decompose_both", False), "decompose_factor": ("factor", -1)},
        },
        {"rank_pattern": {}, "alpha_pattern": {}},
    )

    rank: int = 8
    """The rows of A and of B."""
    alpha: float = 16.0
    """The scale s is alpha / rank."""
    factor: int = -1
    """The sides of C: `factor`, or the nearest divisor below; -1 for the most square C and D."""
    decompose_both: bool = False
    """Whether C is also a product of two factors, where `rank` is below half of its longer side."""
    dropout: float = 0.0
    """Probability of dropping an entry of the adapter's input while a `dropout_key` is given."""

    def __post_init__(self) -> None:
        require_rank(self.rank)
        require_finite("alpha", self.alpha)
        require_dropout(self.dropout)
        if type(self.factor) is not int or (self.factor != -1 and self.factor < 1):
            raise ValueError(f"factor must be -1 or an integer of at least 1, got {self.factor!r}")

    def init(self, key: Array, base: Base) -> Factors:
        dtype, first, last = wide(base.dtype), *self._shapes(base.shape)
        constants = {"scale": jnp.asarray(self.alpha / self.rank, dtype)}
        constants |= dropout_constants(self.dropout, dtype)
        drawn = {}
        for name, shape in (*first.items(), *last.items()):
            key, own = jax.random.split(key)
            fan_in = self.rank if name == "b" else shape[-1] if name in ("a", "ca") else shape[0]
            bound = 0.0 if name in ("c", "cb") else fan_in**-0.5
            drawn[name] = jax.random.uniform(own, shape, dtype, -bound, bound)
        return Factors(drawn, constants)

    def weight(self, base: Base, factors: Factors) -> Array:
        c, d = _matrices(factors)
        return base.dense().astype(d.dtype) + jnp.kron(c, d)

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        each = {name: factor.astype(x.dtype) for name, factor in factors.trainable.items()}
        c, d = _matrices(factors)
        hidden = dropout(x, factors, dropout_key).reshape(*x.shape[:-1], len(c), len(d))
        if "a" in each:
            hidden = jnp.einsum("...mn,rn->...mr", hidden, each["a"])
        hidden = jnp.einsum("...mr,ml->...lr", hidden, c.astype(x.dtype))
        last = each.get("b", each.get("d"))
        y = jnp.einsum("...lr,rk->...lk", hidden, last, preferred_element_type=base.accumulate)
        return add(base.dot(x), y.reshape(*x.shape[:-1], base.shape[1]))

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        c, d = (matrix.astype(base.dtype) for matrix in _matrices(factors))
        left = jnp.take(c, rows // len(d), axis=0, mode="clip")
        right = jnp.take(d, rows % len(d), axis=0, mode="clip")
        update = left[..., :, None] * right[..., None, :]
        return base.take(rows) + update.reshape(*rows.shape, base.shape[1])

    def count(self, shape: tuple[int, int]) -> int:
        return sum(math.prod(each) for part in self._shapes(shape) for each in part.values())

    def _shapes(self, shape: tuple[int, int]) -> tuple[dict[str, tuple[int, int]], ...]:
        """The shapes of the factors of C, and of those of D."""
        (m, n), (l, k) = (_split(size, self.factor) for size in shape)
        first, last = {"c": (m, l)}, {"d": (n, k)}
        if self.decompose_both and 2 * self.rank < max(m, l):
            first = {"ca": (self.rank, m), "cb": (self.rank, l)}
        if 2 * self.rank < max(n, k):
            last = {"a": (self.rank, n), "b": (self.rank, k)}
        return first, last


def _matrices(factors: Factors) -> tuple[Array, Array]:
    """s C (m, l) and D (n, k)."""
    each = factors.trainable
    c = each["c"] if "c" in each else each["ca"].T @ each["cb"]
    return factors.constants["scale"] * c, each["d"] if "d" in each else each["a"].T @ each["b"]


def _split(size: int, factor: int) -> tuple[int, int]:
    """Two factors of `size`, as LyCORIS chooses them."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = math.isqrt(size) if factor < 0 else min(factor, math.isqrt(size))
    small = max(each for each in range(1, most + 1) if size % each == 0)
    return small, size // small
