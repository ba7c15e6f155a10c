"""What a training step costs, relative to LoRA's, as the suite `methods` has measured it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from experiments.benchmarks.results import Found, Measured
from experiments.benchmarks.suites.methods import LORA
from experiments.benchmarks.tables import RESULTS

FILE = RESULTS / "methods.json"
ONE = Found(LORA, 1.0, 1.0, 1.0)
"""LoRA's own ratio."""


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """The ratio of each method that was measured, by name; and on what it was measured."""

    ratios: Mapping[str, Found]
    machine: str = ""
    """Empty if nothing was measured."""


def read(path: Path = FILE) -> StepCosts:
    """The costs in a file of results.

    Nothing but LoRA has one if there is no file, or only tiny models were timed.
    """
    if not path.exists():
        return StepCosts({LORA: ONE})
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["smoke"]:
        return StepCosts({LORA: ONE})
    machine, groups = content["machine"], map(Measured.from_json, content["groups"])
    where = f"{machine['processor']}, {machine['cores']} cores, jax {machine['versions']['jax']}"
    return StepCosts({LORA: ONE, **{each.name: each.ratios[0] for each in groups}}, where)
