"""Greedy generation by SmolLM2-135M with its cache: 64 tokens after prompts of 64, 1 and 8 rows.

The ratio to transformers is of seconds, and so of tokens in a second.
"""

import dataclasses
from collections.abc import Iterator

from experiments.benchmarks.cases import Case, Contender, Goal, Group, Ratio
from experiments.benchmarks.plan import Plan, measure
from experiments.benchmarks.results import Measured

AGAINST = ("peft", "merged")
TURNS = 5

CASE = Case(work="generation", model="smollm2", rank=16, tokens=64, weights="base")


def run(plan: Plan) -> Iterator[Measured]:
    return measure([_group(rows) for rows in (1, 8)], plan)


def _group(rows: int) -> Group:
    base = dataclasses.replace(CASE, rows=rows)
    own = {
        "transformers": Contender("peft", base),
        "ours": Contender("ours", base),
        "ours, LoRA beside": Contender("ours", dataclasses.replace(base, weights="unmerged")),
    }
    ratios = (
        Ratio("transformers", "ours", "peft", goal=Goal(1.0, 1.5)),
        Ratio("ours, LoRA beside", "ours", "merged"),
    )
    return Group(f"smollm2, {rows} x {base.tokens}, {base.written} new", own, ratios, 1)
