"""Forward passes with an adapter beside the base, and merged into it, beside the base alone."""

import dataclasses
from collections.abc import Iterator

from experiments.benchmarks.cases import Case, Contender, Goal, Group, Ratio
from experiments.benchmarks.plan import Plan, measure
from experiments.benchmarks.results import Measured

AGAINST = ("merged",)
TURNS = 10

CASES = (
    Case(work="forward"),
    Case(work="forward", method="dora"),
    Case(work="forward", model="smollm2", rank=16, rows=4, tokens=128),
)
GOALS = {"merged": Goal(1.02, 1.0), "unmerged": Goal(1.15, 1.07)}


def run(plan: Plan) -> Iterator[Measured]:
    return measure([_group(case) for case in CASES], plan)


def _group(case: Case) -> Group:
    names = ("base", "merged", "unmerged")
    own = {name: Contender("ours", dataclasses.replace(case, weights=name)) for name in names}
    ratios = tuple(Ratio(name, "base", "merged", goal=goal) for name, goal in GOALS.items())
    shape = f"{case.rows} x {case.tokens}"
    return Group(f"{case.model}, {case.method} on {case.targets}, {shape}", own, ratios, repeats=5)
