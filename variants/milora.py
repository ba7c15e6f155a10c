"""MiLoRA: the adapter starts as the minor part of the weight.

Wang et al. 2024, "MiLoRA: Harnessing Minor Singular Components for Parameter-Efficient LLM
Finetuning", arXiv 2406.09044. For W of shape (in, out), used as x @ W,

    W' = W + s (A^T B - A0^T B0).
"""

import dataclasses

from lora_jax.methods.lowrank import LowRank


@dataclasses.dataclass(frozen=True)
class MiLoRA(LowRank):
    """At the start, s A^T B = s A0^T B0 is made of the r smallest singular triples of W.

    With W = U S V^T, A0 = sqrt(S_r / s) U_r^T and B0 = sqrt(S_r / s) V_r^T, of the last r triples.

    Differences from plain LoRA: both factors start in the directions that W uses least. Difference
    from PiSSA: there they are the largest. As there, W stays and the start is subtracted, where the
    paper replaces W by the rest. PEFT does not have the method.

    The start takes a full SVD: faster ways lose the smallest values in rounding errors. Where W is
    of lower rank than min(in, out), the last values are such errors, or zero; a row of A and B that
    starts at zero never moves. On a quantised base the triples are those of what is stored, whose
    smallest directions may owe more to the errors of quantisation than to the weight. The
    initialisation is a setting of every A/B method.
    """

    initialization: str = "milora"
