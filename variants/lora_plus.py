"""LoRA+: B learns faster than A.

Hayou et al. 2024, "LoRA+: Efficient Low Rank Adaptation of Large Models", arXiv 2402.12354, theorem
1: in a wide network features are learnt efficiently only if eta_B / eta_A grows with width. For W
of shape (in, out), used as x @ W, and learning rates eta_A and eta_B,

    W' = W + s A^T B,    eta_B = lambda eta_A.
"""

import dataclasses
from typing import ClassVar

from lora_jax.methods.lowrank import LowRank


@dataclasses.dataclass(frozen=True)
class LoRAPlus(LowRank):
    """LoRA whose B has lambda, `learning_rate_ratio`, times the optimiser's learning rate.

    Differences from plain LoRA: only that rate, which `adapted.optimizer(tx, frozen)` applies; a
    loop that uses `tx` itself trains plain LoRA. It is a setting of every A/B method (with DoRA the
    magnitude keeps the plain rate; PEFT gives it B's). A sweep replaces `constants["ratio"]`, which
    compiles nothing anew. Another setting compiles anew, and a ratio of 1 sets no such constant.

    The best ratio depends on the initialisation. The paper's often quoted 2^4 was best on RoBERTa
    where A starts at zero and B at random (its Init[2]); with A random and B zero, as here and in
    most code (Init[1]), the best were 2^2 to 2^3, and 2^1 to 2^2 for Llama (section 5.3). Tune the
    rate of A at a fixed ratio.

    Differences from the authors' code, which gives B's rate to every trained vector too (the bias
    of a classifier), and 1e-6 to the adapters of embeddings: here only B has it.
    """

    title: ClassVar[str] = "LoRA+"
    peft: ClassVar[str] = "create_loraplus_optimizer"
    suggested: ClassVar = LowRank.suggested._replace(small=1e-3)

    learning_rate_ratio: float = 4.0
