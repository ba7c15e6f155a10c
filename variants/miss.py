"""MiSS: W' = W + [D; D; ...], one shard D (rank, out) repeated down the input axis.

Kang and Yin 2024, "MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing
Structure", arXiv 2409.15371 (earlier versions: "Bone"). For W of shape (in, out), used as x @ W,

    W'[i, :] = W[i, :] + D[i mod rank, :],        x W' = x W + fold(x) D,
    fold(x)[..., k] = sum of x[..., i] over all i with i mod rank = k,

where D starts at zero. The last copy of D is cut off where rank does not divide `in`.
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from lora_jax.methods.checks import require_dropout, require_rank
from lora_jax.methods.products import add, dropout, dropout_constants, product
from lora_jax.peft_format import Config, Layouts, Settings, same
from lora_jax.variant import Base, Factors, Variant, wide


@dataclasses.dataclass(frozen=True)
class MiSS(Variant):
    """One trained shard, shared by every block of `rank` inputs.

    Differences from plain LoRA: one factor instead of two (rank * out numbers, not
    rank * (in + out)); no alpha and no scale; nothing is drawn, since a lone D that starts at zero
    has a gradient. It equals PEFT's MiSS with `init_weights=True`, also where rank does not divide
    `in`; PEFT's "bat" and "mini" are not here. `dropout` (PEFT's `miss_dropout`) acts on x before x
    is folded.
    """

    peft: ClassVar[str] = "MissConfig"
    peft_layouts: ClassVar[Layouts] = {"d": same("miss_block", 1, 0.0)}
    peft_config: ClassVar[Config] = Config(
        "MISS",
        {"r": ("rank", 64), "miss_dropout": ("dropout", 0.0)},
        ignored={"init_weights": None},
    )

    rank: int = 8
    """The rows of the shard D."""
    dropout: float = 0.0
    """Probability of dropping an entry of the adapter's input while a `dropout_key` is given."""

    def __post_init__(self) -> None:
        require_rank(self.rank)
        require_dropout(self.dropout)

    def validate(self, shape: tuple[int, int]) -> None:
        if self.rank > shape[0]:
            raise ValueError(f"rank {self.rank} exceeds the {shape[0]} inputs of {shape}")

    def init(self, key: Array, base: Base) -> Factors:
        dtype = wide(base.dtype)
        constants = dropout_constants(self.dropout, dtype)
        return Factors({"d": jnp.zeros((self.rank, base.shape[1]), dtype)}, constants)

    def weight(self, base: Base, factors: Factors) -> Array:
        d = factors.trainable["d"]
        return base.dense().astype(d.dtype) + _fold(base.shape[0], len(d), d.dtype).T @ d

    def as_lora(self, base: Base, factors: Factors) -> tuple[Array, Array] | None:
        d = factors.trainable["d"]
        return _fold(base.shape[0], len(d), d.dtype), d

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        d = factors.trainable["d"].astype(x.dtype)
        # A product by ones and zeros, which is faster than a sum over short rows.
        fold = _fold(base.shape[0], len(d), x.dtype)
        y = product(dropout(x, factors, dropout_key), fold, d, base.accumulate)
        return add(base.dot(x), y)

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        d = factors.trainable["d"].astype(base.dtype)
        return base.take(rows) + jnp.take(d, rows % len(d), axis=0, mode="clip")

    @classmethod
    def from_peft(cls, config: Settings) -> Variant | None:
        kind = config.get("init_weights")
        if config.get("peft_type") == "MISS" and kind in ("bat", "mini"):
            raise ValueError(f"MISS with init_weights={kind!r} is not here")
        return super().from_peft(config)

    def count(self, shape: tuple[int, int]) -> int:
        return self.rank * shape[1]


def _fold(inputs: int, rank: int, dtype: Any) -> Array:
    """(rank, in): row k has ones for the inputs that share row k of D."""
    return jnp.tile(jnp.eye(rank, dtype=dtype), -(-inputs // rank))[:, :inputs]
