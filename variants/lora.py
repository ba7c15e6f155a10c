"""LoRA: low-rank adaptation of frozen weights.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, equation 3:
h = W x + (alpha / r) B A x.
"""

import dataclasses
from typing import ClassVar

from lora_jax.methods.lowrank import LowRank


@dataclasses.dataclass(frozen=True)
class LoRA(LowRank):
    """y = x W + s (x A^T) B with s = alpha / rank, A random and B zero at the start.

    The paper's text draws A from a Gaussian; the authors' code and PEFT draw it uniformly, which is
    the default here (`initialization="gaussian"` for the other). All of it is in `LowRank`, which
    the other A/B methods change; their docstrings list how.
    """

    peft: ClassVar[str] = "LoraConfig"
