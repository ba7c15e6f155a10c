"""BitFit: only the biases train.

Ben Zaken et al. 2021, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
Language-models", arXiv 2106.10199.
"""

import dataclasses
import re
from typing import TYPE_CHECKING, ClassVar

from lora_jax.variant import Suggested, Variant

if TYPE_CHECKING:
    from lora_jax.base import WeightUse


@dataclasses.dataclass(frozen=True)
class BitFit(Variant):
    """Every parameter named as a bias trains, those of norms included; targets do not matter.

    A bias is recognised by the last part of its path, as all frameworks name it. The paper's
    smaller set (of queries and of the second feed-forward matrix) is
    `pattern=r"(.*/)?(query|up)/bias"` for the models of this library.
    """

    pattern: str = r"(.*[/_])?(bias|beta|b)"
    """A regular expression for whole paths."""

    suggested: ClassVar[Suggested] = Suggested(5e-3, 1e-3, (1e-3, 3e-3, 1e-2))
    adapts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"pattern '{self.pattern}' is not a regular expression: {error}"
            ) from None

    def trains(self, path: str, use: "WeightUse", targeted: bool) -> bool:
        return re.fullmatch(self.pattern, path) is not None
