"""LoRA-XS: a small trained matrix between frozen singular vectors of the weight.

Balazy et al. 2024, "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters",
arXiv 2405.17604. For W of shape (in, out), used as x @ W, with the singular value decomposition
W = U S V^T cut to its leading `rank` triples,

    W' = W + s U_r S_r R V_r^T,  s = alpha / rank.
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from lora_jax.methods.checks import require_dropout, require_finite, require_fit, require_rank
from lora_jax.methods.decompositions import truncated_svd
from lora_jax.methods.lowrank import LowRankUpdate
from lora_jax.methods.products import dropout_constants
from lora_jax.variant import Base, Factors, wide


@dataclasses.dataclass(frozen=True)
class LoRAXS(LowRankUpdate):
    """R (rank, rank) is trained; A = (U_r S_r)^T (rank, in) and B = V_r^T (rank, out) are frozen.

    Differences from plain LoRA: rank^2 numbers, whatever the size of W, and the update stays among
    W's leading singular directions. A and B are constants taken from W, or from what a quantised W
    stands for.

    Differences from the paper and the authors' code: R starts at zero, so that W' = W; there it is
    drawn with a standard deviation of 1e-5. R is the transpose of the weight of their
    `default_lora_latent_mapping`, a torch layer. PEFT does not have the method.
    """

    title: ClassVar[str] = "LoRA-XS"
    remade: ClassVar[tuple[str, ...]] = ("a", "b")

    rank: int = 16
    """The side of R: how many singular triples of W are used."""
    alpha: float = 16.0
    """The scale s is alpha / rank."""
    dropout: float = 0.0
    """Probability of dropping an entry of the adapter's input while a `dropout_key` is given."""

    def __post_init__(self) -> None:
        require_rank(self.rank)
        require_finite("alpha", self.alpha)
        require_dropout(self.dropout)

    def validate(self, shape: tuple[int, int]) -> None:
        require_fit("rank", self.rank, shape)

    def init(self, key: Array, base: Base) -> Factors:
        dtype, rank = wide(base.dtype), self.rank
        u, s, vt = truncated_svd(base.dense().astype(dtype), rank)
        constants = {"a": (u * s[None]).T, "b": vt}
        constants["scale"] = jnp.asarray(self.alpha / rank, dtype)
        constants |= dropout_constants(self.dropout, dtype)
        return Factors({"r": jnp.zeros((rank, rank), dtype)}, constants)

    def low_rank_factors(self, factors: Factors, dtype: Any) -> tuple[Array, Array]:
        constants = factors.constants
        b = constants["scale"] * (factors.trainable["r"] @ constants["b"])
        return constants["a"].astype(dtype), b.astype(dtype)

    def count(self, shape: tuple[int, int]) -> int:
        return self.rank**2
