"""Riemannian LoRA: the step of each factor is divided by the size of the other one.

Zhang and Pilanci 2024, "Riemannian Preconditioned LoRA for Fine-Tuning Foundation Models", arXiv
2402.02347. For W of shape (in, out), used as x @ W, and gradients g_A and g_B, the optimiser gets
dA and dB:

    W' = W + s A^T B,    dA = (B B^T + d I)^-1 g_A,    dB = (A A^T + d I)^-1 g_B.
"""

import dataclasses
from typing import ClassVar

from lora_jax.methods.lowrank import LowRank


@dataclasses.dataclass(frozen=True)
class Riemannian(LowRank):
    """LoRA whose optimiser gets dA and dB in place of the gradients g_A and g_B.

    To first order, a step of gradient descent moves W' along s^2 (P_A G + G P_B), where G is the
    gradient of W', and P_A and P_B project on the rows of A and B. So it is the same for all A and
    B of one product (up to d, which is `damping`); in plain LoRA it grows with their sizes. While B
    is zero, g_A is zero too, and only B moves.

    Differences from plain LoRA: only these gradients, which `adapted.optimizer(tx, frozen)` gives
    to `tx`; a loop that uses `tx` itself trains plain LoRA. Adam has their moments, as in the
    paper. `make_train_step(..., clip=)` clips before they are changed, a clip in `tx` after that.
    The preconditioner is a setting of every A/B method except AdaLoRA; what is said of W' holds
    where it is W + s A^T B.

    Differences from the authors' code, which computes B's from the A that has stepped already: here
    neither has, as in PEFT. PEFT leaves adapters of embeddings alone, and its d is 0.01; the
    default here is the authors'.
    """

    title: ClassVar[str] = "Riemannian LoRA"
    peft: ClassVar[str] = "create_riemannian_optimizer"

    preconditioner: str = "riemannian"
