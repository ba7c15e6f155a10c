"""Riemannian preconditioning: A and B step as if the other were orthonormal.

Zhang and Pilanci 2024, "Riemannian Preconditioned LoRA for Fine-Tuning Foundation Models",
arXiv 2402.02347, section 3.
"""

import dataclasses
from typing import ClassVar

from lora_jax.methods.lowrank import LowRank


@dataclasses.dataclass(frozen=True)
class Riemannian(LowRank):
    """LoRA whose optimiser gets (B B^T + d I)^-1 g_A and (A A^T + d I)^-1 g_B for g_A and g_B.

    d is `damping`. A step of gradient descent then moves W' alike for all A and B of one product
    (up to d, and to first order in the rate); in plain LoRA it depends on the sizes of A and B.
    While B is zero, so is g_A, and only B moves.

    Differences from plain LoRA: those gradients, which `adapted.optimizer(tx, frozen)` gives to
    `tx`; a loop that uses `tx` itself trains plain LoRA. With Adam, its moments are those of the
    changed gradients, as in the paper. Gradients are clipped before (`make_train_step`) or after
    (in `tx`). Other learning rates suit it than suit LoRA. The preconditioner is a setting of every
    A/B method but AdaLoRA.

    Differences from the authors' code, which changes B's gradient by the A after its step: here,
    as in PEFT, both are those before. PEFT's d is 0.01; the authors' is the default here. Where
    M is singular up to rounding, PEFT's pseudo-inverse of M + d I leaves directions out; here,
    they are damped.
    """

    title: ClassVar[str] = "Riemannian LoRA"

    preconditioner: str = "riemannian"
