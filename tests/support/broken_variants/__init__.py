"""LoRA with one thing wrong in each class, and in `BREAKS` the clause that must say so."""

import dataclasses

from variants.lora import LoRA


@dataclasses.dataclass(frozen=True)
class Mutant(LoRA):
    rank: int = 2
