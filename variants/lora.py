"""LoRA: low-rank adaptation of frozen weights.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, equation 3:
h = W x + (alpha / r) B A x. For W of shape (in, out), used as x @ W,

    W' = W + s A^T B,    s = alpha / rank.
"""

import dataclasses
from typing import ClassVar

from lora_jax.methods import peft_lora
from lora_jax.methods.lowrank import LowRank
from lora_jax.peft_format import Settings


@dataclasses.dataclass(frozen=True)
class LoRA(LowRank):
    """y = x W + s (x A^T) B with s = alpha / rank, A random and B zero at the start.

    The paper's text draws A from a Gaussian; the authors' code and PEFT draw it uniformly, which is
    the default here (`initialization="gaussian"` for the other). On a lookup table, theirs start A
    at zero and draw B from N(0, 1); here a table starts as a matrix does. All of it is in
    `LowRank`, which the other A/B methods change; their docstrings list how.
    """

    peft: ClassVar[str] = "LoraConfig"

    @classmethod
    def from_peft(cls, config: Settings) -> "LoRA | None":
        """Also rsLoRA, PiSSA and OLoRA, which differ in settings that this method has too."""
        fields = peft_lora.fields_of(config, dora=False)
        return None if fields is None else cls(**fields)
