"""Init[AB]: both factors start at random, and what they do at the start is subtracted.

Li et al. 2025, "Beyond Zero Initialization: Investigating the Impact of Non-Zero Initialization on
LoRA Fine-Tuning Dynamics", arXiv 2505.23194. For W of shape (in, out), used as x @ W,

    W' = W + s (A^T B - A0^T B0).
"""

import dataclasses
from typing import ClassVar

from lora_jax.methods.lowrank import LowRank


@dataclasses.dataclass(frozen=True)
class InitAB(LowRank):
    """A and B start at A0 and B0, which are drawn from U(-1/sqrt(in), 1/sqrt(in)).

    Differences from plain LoRA: B starts at random, too, so that A has a gradient from the first
    step on; the paper finds that small learning rates gain from this. Both bounds follow the number
    of inputs, as in the authors' code. PEFT's `init_lora_weights=False`, where B has the bound
    1/sqrt(rank) and nothing is subtracted, is meant for its tests.

    The paper also finds that the subtraction can be left out, W' = W + s A^T B, which costs rank r
    in place of 2r. That is not here: it would not begin as its base. The initialisation is a
    setting of every A/B method.
    """

    title: ClassVar[str] = "Init[AB]"

    initialization: str = "init_ab"
