"""OLoRA: the adapter starts as the leading part of the weight's QR decomposition.

Buyukakyuz 2024, "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models", arXiv
2406.01775, algorithm 1. For W of shape (in, out), used as x @ W,

    W' = W + s (A^T B - A0^T B0).
"""

import dataclasses
from typing import ClassVar

from lora_jax.methods.lowrank import LowRank


@dataclasses.dataclass(frozen=True)
class OLoRA(LowRank):
    """With W^T = Q R, A starts at A0, the first r rows of R, and B at B0, those of Q^T.

    Differences from plain LoRA: B starts orthonormal and A as the rows of R that belong to it.
    Differences from the paper and PEFT: W stays and the start is subtracted (see `variants/pissa`).
    The initialisation is a setting of every A/B method.
    """

    peft: ClassVar[str] = 'LoraConfig(init_lora_weights="olora")'
    suggested: ClassVar = LowRank.suggested._replace(small=2e-4)

    initialization: str = "olora"
