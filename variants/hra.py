"""HRA: inputs are reflected by a few Householder matrices before the frozen weight sees them.

Yuan et al. 2024, "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder
Reflection Adaptation", arXiv 2405.17484. For W of shape (in, out), used as x @ W, with unit vectors
v_k = u_k / ||u_k||,

    W' = H_r ... H_2 H_1 W,    H_k = I - 2 v_k v_k^T.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.methods.checks import require_rank
from lora_jax.methods.decompositions import inverse
from lora_jax.methods.products import product
from lora_jax.peft_format import Config, Layouts, Settings, transposed
from lora_jax.variant import Base, Factors, Variant, wide


@dataclasses.dataclass(frozen=True)
class HRA(Variant):
    """One vector u_k for each of `rank` reflections, the rows of `u` (rank, in).

    Differences from plain LoRA: multiplicative, without a scale; lengths and angles among the
    columns of W stay as they are; rank * in numbers. The reflections are multiplied into one
    low-rank matrix, H_r ... H_1 = I - V^T T^T V with T^-1 = I / 2 + the part above the diagonal of
    V V^T (Schreiber and Van Loan 1989, "A Storage-Efficient WY Representation"). So no dense matrix
    is formed, and no loop is run over the rank.

    The vectors start as `pairs` of equal ones, which undo each other, so that W' = W; therefore the
    rank is even. Equal to PEFT's HRA, which computes the dense product step by step. The paper's
    orthogonality regulariser is not here, nor its limit, PEFT's `apply_GS`: orthonormal
    reflections never give W' = W.
    """

    peft: ClassVar[str] = "HRAConfig"
    peft_layouts: ClassVar[Layouts] = {"u": transposed("hra_u", "all")}
    peft_config: ClassVar[Config] = Config("HRA", {"r": ("rank", 8)})

    rank: int = 8
    """How many reflections there are; it is even."""
    pairs: bool = True
    """Without, as in PEFT where the rank is odd, each vector is drawn, and W' is not W at first."""

    def __post_init__(self) -> None:
        require_rank(self.rank)
        if self.pairs and self.rank % 2:
            raise ValueError(f"HRA needs an even rank, to start at the weight, got {self.rank}")

    def init(self, key: Array, base: Base) -> Factors:
        times = 2 if self.pairs else 1
        shape, bound = (self.rank // times, base.shape[0]), (self.rank // times) ** -0.5
        drawn = jax.random.uniform(key, shape, wide(base.dtype), -bound, bound)
        return Factors({"u": jnp.repeat(drawn, times, axis=0)}, {})

    def weight(self, base: Base, factors: Factors) -> Array:
        v, back = _reflections(factors)
        dense = base.dense().astype(v.dtype)
        return dense + v.T @ (back @ dense)

    def as_lora(self, base: Base, factors: Factors) -> tuple[Array, Array] | None:
        v, back = _reflections(factors)
        return v, back @ base.dense().astype(v.dtype)

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        v, back = (each.astype(x.dtype) for each in _reflections(factors))
        return base.dot(x + product(x, v, back))

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        v, back = (each.astype(base.dtype) for each in _reflections(factors))
        hidden = jnp.moveaxis(jnp.take(v, rows, axis=1, mode="clip"), 0, -1)
        return base.take(rows) + hidden @ base.dot(back).astype(base.dtype)

    @classmethod
    def from_peft(cls, config: Settings) -> "HRA | None":
        known = cls.peft_config.read(config)
        return None if known is None else cls(**known, pairs=known["rank"] % 2 == 0)

    def count(self, shape: tuple[int, int]) -> int:
        return self.rank * shape[0]


def _reflections(factors: Factors) -> tuple[Array, Array]:
    """V and -T^T V, both (rank, in): all reflections together are I + V^T (-T^T V)."""
    u = factors.trainable["u"]
    v = u / jnp.linalg.norm(u, axis=1, keepdims=True)
    halves = jnp.eye(len(v), dtype=v.dtype) / 2
    with jax.default_matmul_precision("highest"):  # reflections only if these are not rounded
        return v, -inverse(halves + jnp.triu(v @ v.T, 1)).T @ v
