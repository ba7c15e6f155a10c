"""LoRA-One: the adapter starts with one step of gradient descent, cut to its rank.

Zhang, Liu and Chen 2025, "LoRA-One: One-Step Full Gradient Could Suffice for Fine-Tuning Large
Language Models, Provably and Efficiently", arXiv 2502.01235, algorithm 1. For W of shape (in, out),
used as x @ W, and dL/dW = U S V^T,

    W' = W + s A^T B,    at the start W' = W - (s / (gamma S_1)) U_r S_r V_r^T.
"""

import dataclasses
from typing import ClassVar

from lora_jax.methods.lowrank import LowRank


@dataclasses.dataclass(frozen=True)
class LoRAOne(LowRank):
    """A and B start from the leading singular triples of dL/dW.

    A0 = c sqrt(S_r) U_r^T and B0 = -c sqrt(S_r) V_r^T, c = 1 / sqrt(gamma S_1), gamma = 128. The
    division by the greatest singular value S_1 is in the authors' code: the size of the loss does
    not matter. `adapted.init` needs `batches` and a `loss` to find dL/dW, which it never forms.

    Differences from plain LoRA: both factors start from the gradient; s = alpha / sqrt(rank), as in
    the authors' code. Differences from LoRA-GA: both factors take the same directions, and the
    start is not subtracted. It is a step of training, so the adapted function begins elsewhere than
    its base. Rows beyond the rank of dL/dW start near zero, and hardly move.

    Difference from the paper: the preconditioners of its algorithm are left out. They belong to the
    optimiser, and the authors report results without them too. PEFT does not have the method. The
    initialisation is a setting of every method that is W + s A^T B.
    """

    title: ClassVar[str] = "LoRA-One"

    scale: str = "alpha/sqrt(rank)"
    initialization: str = "lora_one"
