"""LoRA-Pro: A and B step so that the weight moves as close to its own gradient as it can.

Wang et al. 2024, "LoRA-Pro: Are Low-Rank Adapters Properly Optimized?", arXiv 2407.18242,
theorems 2.1 and 2.3.
"""

import dataclasses
from typing import ClassVar

from lora_jax.methods.lowrank import LowRank


@dataclasses.dataclass(frozen=True)
class LoRAPro(LowRank):
    """LoRA whose optimiser gets dA and dB for the gradients g_A and g_B.

    To first order, a step of gradient descent along dA and dB moves W' along s (dA^T B + A^T dB):
    of all changes of that form, the closest to the gradient of W', which is never formed. The
    equations are in `lora_jax.methods.preconditioning`; their inverses are damped by `damping`.
    While B is zero, so are g_A and dA, and only B moves.

    Differences from plain LoRA: those gradients, which `adapted.optimizer(tx, frozen)` gives to
    `tx`; a loop that uses `tx` itself trains plain LoRA. Their size has no 1/s^2 too much: other
    learning rates suit it. The preconditioner is a setting of every A/B method but AdaLoRA; with
    LoRA-FA it is PEFT's `LoraFAOptimizer`.

    With gradient descent, this is the paper's method. With Adam, the paper's has the moments of
    s (dA^T B + A^T dB): two dense matrices for each W, as in full fine-tuning, from which dA and dB
    are found a second time. That is not here. Here Adam has the moments of dA and dB, as in the
    mode "efficient" of the authors' earlier code: its step is not the closest to anything, and it
    depends on the choice of X. Differences from that code, whose X is not damped, and which
    decays W too.
    """

    title: ClassVar[str] = "LoRA-Pro"

    preconditioner: str = "lora_pro"
    damping: float = 1e-8
