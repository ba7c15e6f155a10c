"""rsLoRA: rank-stabilised scaling.

Kalajdzievski 2023, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", arXiv
2312.03732: the moments of the adapter's outputs and gradients neither vanish nor explode with the
rank if and only if its scale falls as 1/sqrt(rank). For W of shape (in, out), used as x @ W,

    W' = W + s A^T B,    s = alpha / sqrt(rank).
"""

import dataclasses
from typing import ClassVar

from lora_jax.methods.lowrank import LowRank


@dataclasses.dataclass(frozen=True)
class RsLoRA(LowRank):
    """y = x W + (alpha / sqrt(rank)) (x A^T) B.

    Difference from plain LoRA: the scale is alpha / sqrt(rank) instead of alpha / rank. So alpha
    has another meaning: the same alpha gives sqrt(rank) times the effect. The scale rule is a
    setting of every A/B method (`scale`); this file gives it a name.
    """

    title: ClassVar[str] = "rsLoRA"
    peft: ClassVar[str] = "LoraConfig(use_rslora=True)"
    suggested: ClassVar = LowRank.suggested._replace(small=1e-3)

    scale: str = "alpha/sqrt(rank)"
