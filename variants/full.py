"""Full fine-tuning: no adapter, the baseline that every method is compared with."""

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from lora_jax.variant import Suggested, Variant

if TYPE_CHECKING:
    from lora_jax.base import WeightUse


@dataclasses.dataclass(frozen=True)
class Full(Variant):
    """Every floating-point parameter trains, or with `only_targets` the targets alone."""

    title: ClassVar[str] = "full fine-tuning"
    suggested: ClassVar[Suggested] = Suggested(2e-4, 2e-5, (3e-5, 1e-4, 3e-4))
    adapts: ClassVar[bool] = False

    only_targets: bool = False
    """Whether the targets alone train."""

    def trains(self, path: str, use: "WeightUse", targeted: bool) -> bool:
        return targeted or not self.only_targets
