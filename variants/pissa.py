"""PiSSA: the adapter starts as the principal part of the weight.

Meng et al. 2024, "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large
Language Models", arXiv 2404.02948, equations 2 to 4. For W of shape (in, out), used as x @ W,

    W' = W + s (A^T B - A0^T B0).
"""

import dataclasses
from typing import ClassVar

from lora_jax.methods.lowrank import LowRank


@dataclasses.dataclass(frozen=True)
class PiSSA(LowRank):
    """At the start, s A^T B = s A0^T B0 is the best rank-r approximation of W.

    With W = U S V^T, A0 = sqrt(S_r / s) U_r^T and B0 = sqrt(S_r / s) V_r^T.

    Differences from plain LoRA: both factors start from the weight's largest singular values.
    Difference from the paper and PEFT, which replace W by a residual W - s A0^T B0: here W stays,
    and A0 and B0 are constants. The function and its gradients are the same, except with dropout:
    it acts on the difference from the start, and there on s A^T B. But leaving the
    adapter out gives W back bit by bit, and a bf16 weight is not rounded anew; a product costs rank
    2r. On a quantised base it starts from what is stored. The paper's QPiSSA, which quantises the
    residual to lose less, is a different method. The initialisation is a setting of every A/B
    method; "pissa_niter_<n>" takes a randomised SVD of n iterations (the fast SVD).

    The paper sets alpha = rank, so that s = 1.
    """

    peft: ClassVar[str] = 'LoraConfig(init_lora_weights="pissa")'
    suggested: ClassVar = LowRank.suggested._replace(
        small=2e-4, large=1e-4, tried=(1e-4, 3e-4, 1e-3)
    )

    initialization: str = "pissa"
