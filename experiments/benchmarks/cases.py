"""What is timed: a training step of one method on all-MiniLM-L6-v2, by one library."""

import dataclasses
from typing import Any, Literal

RANK = 8
CLASSES = 2
BUDGET: dict[str, Any] = {"target_rank": 4, "t_init": 10, "t_final": 900, "delta_t": 1}
"""AdaLoRA's schedule, out of `STEPS` steps: all timed steps change ranks."""
STEPS = 10_000


@dataclasses.dataclass(frozen=True)
class Case:
    """A method and the matrices that it adapts."""

    method: str
    targets: Literal["query, value", "all six"] = "all six"
    rows: int = 32
    """Of a batch."""
    tokens: int = 48
    """Of a row."""

    def __str__(self) -> str:
        return self.method if self.method == "full" else f"{self.method}, {self.targets}"


TRAIN = (
    Case("lora", "query, value"),
    Case("lora"),
    Case("dora"),
    Case("adalora"),
    Case("full"),
)
