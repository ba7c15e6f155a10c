"""EVA: the adapter starts along the main directions of the weight's inputs.

Paischer et al. 2024, "Parameter Efficient Fine-tuning via Explained Variance Adaptation",
arXiv 2410.07170, section 3.
"""

import dataclasses

from lora_jax.methods.lowrank import LowRank


@dataclasses.dataclass(frozen=True)
class EVA(LowRank):
    """W' = W + s A^T B, A the leading principal components of the inputs of W, and B zero."""

    initialization: str = "eva_rho_2"
