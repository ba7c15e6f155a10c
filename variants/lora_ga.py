"""LoRA-GA: the adapter starts along the gradient of the weight, so that it first moves as W would.

Wang et al. 2024, "LoRA-GA: Low-Rank Adaptation with Gradient Approximation", arXiv 2407.05000,
algorithm 1. For W of shape (in, out), used as x @ W,

    W' = W + s (A^T B - A0^T B0).
"""

import dataclasses
from typing import ClassVar

from lora_jax.methods.lowrank import LowRank


@dataclasses.dataclass(frozen=True)
class LoRAGA(LowRank):
    """A and B start at A0 and B0, which are singular vectors of dL/dW = U S V^T, scaled.

    A0 = c U_{1..r}^T and B0 = c V_{r+1..2r}^T, c = out^(1/4) / sqrt(16). After one small step of
    gradient descent, W' has moved by -rate * s^2 c^2 times the best approximation of dL/dW of rank
    2r. `adapted.init` needs `batches` and a `loss` to find dL/dW, which it never forms.

    Differences from plain LoRA: both factors start from the gradient; s = alpha / sqrt(rank), as in
    the paper. Differences from the paper: W stays and the start is subtracted (see
    `variants/pissa`); so it may be quantised. The singular vectors are those of a randomised SVD.
    PEFT's are, too; it multiplies B0 by the singular values, and A0 not by c, which the paper does
    not. The initialisation is a setting of every A/B method but GraLoRA.
    """

    title: ClassVar[str] = "LoRA-GA"
    peft: ClassVar[str] = 'LoraConfig(init_lora_weights="lora_ga")'

    scale: str = "alpha/sqrt(rank)"
    initialization: str = "lora_ga"
