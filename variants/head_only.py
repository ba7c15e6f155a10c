"""Head only: no adapter at all, the baseline that every table needs."""

import dataclasses
from typing import ClassVar

from lora_jax.variant import Variant


@dataclasses.dataclass(frozen=True)
class HeadOnly(Variant):
    """No target trains; only what `also_train` names (a new head) does."""

    adapts: ClassVar[bool] = False
