"""The files of a suite's results: JSON, Markdown and a picture."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import plot, results, tables
from experiments.benchmarks.plan import Plan
from experiments.benchmarks.results import Measured
from lora_jax.files.atomic import write_atomically


def content(suite: str, plan: Plan, found: Sequence[Measured]) -> dict[str, Any]:
    """All that was measured, with the machine that it was measured on, as JSON."""
    groups = [dataclasses.asdict(each) for each in found]
    head = {"suite": suite, **dataclasses.asdict(plan), "machine": results.machine()}
    return {**head, "groups": groups}


def write(folder: Path, suite: str, plan: Plan, found: Sequence[Measured]) -> None:
    """Write the three files of a suite."""
    whole = content(suite, plan, found)
    write_atomically(folder / f"{suite}.json", f"{json.dumps(whole, indent=1)}\n".encode())
    write_atomically(folder / f"{suite}.md", tables.document(whole).encode())
    picture = plot.draw(found, f"{suite}, {plan.turns} turns")
    if picture is not None:
        write_atomically(folder / f"{suite}.png", picture)
