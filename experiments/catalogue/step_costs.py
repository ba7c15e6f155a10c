"""What a training step costs, relative to LoRA's, as the suite `methods` of `benchmarks` says."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

FILE = Path(__file__).parents[1] / "results" / "bench" / "methods.json"
LORA = "lora"


@dataclasses.dataclass(frozen=True)
class StepCost:
    """The time of a step over that of LoRA's: the median over neighbouring turns, and quartiles."""

    middle: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """The ratio of each method that was measured, by name; and on what it was measured."""

    ratios: Mapping[str, StepCost]
    machine: str = ""
    """Empty if nothing was measured."""


def read(path: Path = FILE) -> StepCosts:
    """The costs in a file of results.

    Nothing but LoRA has one if there is no file, or only tiny models were timed.
    """
    ratios = {LORA: StepCost(1.0, 1.0, 1.0)}
    if not path.exists():
        return StepCosts(ratios)
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["smoke"]:
        return StepCosts(ratios)
    for group in content["groups"]:
        found = group["ratios"][0]
        ratios[group["name"]] = StepCost(found["middle"], found["low"], found["high"])
    machine = content["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, jax {machine['versions']['jax']}"
    return StepCosts(ratios, where)
