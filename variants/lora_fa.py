"""LoRA-FA: A stays as it was drawn, and only B is trained.

Zhang et al. 2023, "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models
Fine-tuning", arXiv 2308.03303. For W of shape (in, out), used as x @ W,

    W' = W + s A^T B.
"""

import dataclasses
from typing import ClassVar

from jax import Array

from lora_jax.methods.lowrank import LowRank
from lora_jax.variant import Base, Factors


@dataclasses.dataclass(frozen=True)
class LoRAFA(LowRank):
    """y = x W + s (x A^T) B with A random and constant, and B trained from zero.

    Differences from plain LoRA: A is among the constants, so reverse mode keeps x A^T (rank wide)
    instead of x, and half of the factors have no gradient and no optimiser state. PEFT's
    `LoraFAOptimizer` is a later method that also corrects the gradient of B: that is
    `preconditioner="lora_pro"`. Without it, this is the paper's.
    """

    title: ClassVar[str] = "LoRA-FA"
    peft: ClassVar[str] = "create_lorafa_optimizer"

    def init(self, key: Array, base: Base) -> Factors:
        trainable, constants = super().init(key, base)
        return Factors({"b": trainable["b"]}, {**constants, "a": trainable["a"]})

    def count(self, shape: tuple[int, int]) -> int:
        return self.rank * shape[1]
