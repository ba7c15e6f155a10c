"""EVA: the adapter starts along the directions in which the weight's inputs vary most.

Paischer et al. 2024, "Parameter Efficient Fine-tuning via Explained Variance Adaptation", arXiv
2410.07170, section 3. For W of shape (in, out), used as x @ W,

    W' = W + s A^T B.
"""

import dataclasses
from typing import ClassVar

from lora_jax.methods.lowrank import LowRank


@dataclasses.dataclass(frozen=True)
class EVA(LowRank):
    """A starts as the leading principal components of the inputs of W, and B at zero.

    "eva_rho_<x>" also divides the ranks: all matrices together have `rank` on average, and none
    more than x times that. They go to the components that explain the greatest shares of the
    variance of their own matrix's inputs; a matrix may be left with no adapter. `adapted.init`
    needs `batches` for this, and only their inputs, unless a loss is given too. It leaves padding
    out if it is given `counts` (`adapted.gather`), as in runs of `experiments`.

    Differences from plain LoRA: A is not random, and ranks differ. The scale s is that of `rank`
    everywhere. Differences from PEFT, whose incremental SVD stops at directions that hardly change:
    here all batches count, by a randomised SVD of the covariance; matrices with equal inputs may
    get their ranks in another order. As in PEFT, the mean of the inputs is subtracted. Where
    several axes are stacked, ranks can differ along the first only. An embedding, also one that is
    the head, has no inputs of its own and is refused. The initialisation is a setting of every A/B
    method but GraLoRA ("eva" keeps the ranks); AdaLoRA takes no rho.
    """

    peft: ClassVar[str] = 'LoraConfig(init_lora_weights="eva")'

    initialization: str = "eva_rho_2"
