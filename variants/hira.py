"""HiRA: the low-rank update multiplies the weight, entry by entry.

Huang et al. 2025, "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language
Models", ICLR 2025 (openreview TwJrTz9cRS), equation 5. For W of shape (in, out), used as x @ W,

    W' = W + W * (s A^T B).
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lora_jax.methods import peft_lora
from lora_jax.methods.lowrank import LowRank
from lora_jax.methods.products import add, dropout
from lora_jax.peft_format import (
    Config,
    Layouts,
    Peft,
    loaded,
    same,
    stored,
    transposed,
)
from lora_jax.variant import Base, Factors, Suggested, Variant, wide

LINEAR: Layouts = {"a": same("hira_A", "all"), "b": transposed("hira_B", 0, 0.0)}
EMBEDDING: Layouts = {"a": same("hira_embedding_A"), "b": transposed("hira_embedding_B")}


@dataclasses.dataclass(frozen=True)
class HiRA(LowRank):
    """The product of W and the low-rank update is taken entry by entry.

    Differences from plain LoRA: the update's rank may be the rank of W times the adapter's, and the
    update is zero where W is. Its products have no short form: they use the dense W', as PEFT's do,
    and its gradient. The scale is one, whatever the rank, as in the paper and PEFT.
    """

    peft: ClassVar[str] = "HiraConfig"
    peft_layouts: ClassVar[Layouts] = LINEAR
    peft_config: ClassVar[Config] = Config(
        "HIRA",
        {"r": ("rank", 32), "hira_dropout": ("dropout", 0.0)},
        {"fan_in_fan_out": False},
    )
    suggested: ClassVar[Suggested] = Suggested(settings={"rank": 8})
    additive: ClassVar[bool] = False

    alpha: float = 1.0
    scale: str = "alpha"

    def weight(self, base: Base, factors: Factors) -> Array:
        update = self._update(base, factors)
        return base.dense().astype(update.dtype) + update

    def as_lora(self, base: Base, factors: Factors) -> tuple[Array, Array] | None:
        return None

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        dropped = dropout(x, factors, dropout_key)
        if dropped is x:
            return Variant.dot(self, x, base, factors)
        update = self._update(base, factors).astype(base.dtype)
        return add(base.dot(x), Base(update, "io", base.accumulate).dot(dropped))

    def dot_t(self, x: Array, base: Base, factors: Factors) -> Array:
        return Variant.dot_t(self, x, base, factors)

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        a, b = self.low_rank_factors(factors, base.dtype)
        taken, hidden = base.take(rows), jnp.take(a, rows, axis=1, mode="clip")
        return taken + taken * lax.dot_general(hidden, b, (((0,), (0,)), ((), ())))

    def to_peft(self, base: Base, factors: Factors, lookup: bool = False) -> Peft | None:
        a, b = self.low_rank_factors(factors, wide(base.dtype))
        both = {"a": np.asarray(a), "b": np.asarray(b)}
        both = {name: x[self._used(factors, len(a))] for name, x in both.items()}
        settings = self.peft_settings(base, factors) | {"r": len(both["a"])}
        return Peft(settings, stored(EMBEDDING if lookup else LINEAR, both))

    def factors_from_peft(self, base: Base, peft: Peft, begun: Factors) -> Factors:
        layouts = EMBEDDING if "hira_embedding_A" in peft.tensors else LINEAR
        rows = loaded(layouts, peft.tensors)
        return begun._replace(trainable=peft_lora.padded(rows, begun, self.rank))

    def _update(self, base: Base, factors: Factors) -> Array:
        delta = self.delta(factors)
        return base.dense().astype(delta.dtype) * delta
