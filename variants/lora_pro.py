"""LoRA-Pro: the weight moves as close to its own gradient as its factors allow.

Wang et al. 2024, "LoRA-Pro: Are Low-Rank Adapters Properly Optimized?", arXiv 2407.18242, section
2. For W of shape (in, out), used as x @ W, and G the gradient of W', the optimiser gets dA and dB
for which

    W' = W + s A^T B,    ||s (dA^T B + A^T dB) - G|| is the least.
"""

import dataclasses
from typing import ClassVar

from lora_jax.methods.lowrank import LowRank


@dataclasses.dataclass(frozen=True)
class LoRAPro(LowRank):
    """LoRA whose optimiser gets dA and dB for the gradients g_A and g_B.

    To first order, a step of gradient descent moves W' along s (dA^T B + A^T dB): of all changes of
    this form, the closest to the gradient of W', which is never formed. The equations are those of
    `lora_jax.methods.preconditioning.lora_pro`, with inverses damped by `damping`. While B is zero,
    g_A and dA are zero too, and only B moves.

    Differences from plain LoRA: only these gradients, which `adapted.optimizer(tx, frozen)` gives
    to `tx`; a loop that uses `tx` itself trains plain LoRA. `make_train_step(..., clip=)` clips
    before they are changed, a clip in `tx` after that. The preconditioner is a setting of every
    method that is W + s A^T B. With LoRA-FA, which freezes A, it is PEFT's `LoraFAOptimizer`.

    With gradient descent this is the paper's method. With Adam it is the mode "efficient" of the
    authors' first code, with the moments of dA and dB. No theorem holds for it: Adam rescales every
    entry, so that the step is not the closest one, and depends on X. The paper's Adam is not here:
    it keeps the moments of s (dA^T B + A^T dB), two dense matrices for every W, as full fine-tuning
    does. Difference from that code: the equation for X is damped too.
    """

    title: ClassVar[str] = "LoRA-Pro"

    preconditioner: str = "lora_pro"
    damping: float = 1e-8
