"""Head only: no adapter at all, the baseline that every table needs."""

import dataclasses
from typing import ClassVar

from lora_jax.variant import Suggested, Variant


@dataclasses.dataclass(frozen=True)
class HeadOnly(Variant):
    """No target trains; only what `also_train` names (a new head) does."""

    title: ClassVar[str] = "head alone"
    suggested: ClassVar[Suggested] = Suggested(1e-2, 1e-3, (3e-3, 1e-2, 3e-2))
    adapts: ClassVar[bool] = False
