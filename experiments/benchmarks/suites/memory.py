"""The memory of training steps beside PEFT's, and the batch that the memory of full training holds.

Ours is what XLA assigns to a step's temporaries; PEFT's is by how much its process grows in a step,
at most. Both have a model and an optimiser before. (`growth` says the same of our process, in which
the compiler leaves memory behind that the step uses.)

Then LoRA, and LoRA on NF4, get the largest batch whose compiled step needs no more memory than that
of full fine-tuning, parameters and moments included. The ratio is of examples in a second.
"""

import dataclasses
from collections.abc import Callable, Iterator

from experiments.benchmarks.cases import Case, Contender, Goal, Group, Ratio
from experiments.benchmarks.plan import Plan, chosen, smaller
from experiments.benchmarks.results import Measured
from experiments.benchmarks.turns import facts_of, time_in_turns

AGAINST = ("peft", "full")
TURNS = 5

MINILM = Case()
SMOLLM2 = Case(model="smollm2", rank=16, rows=4, tokens=128)
REACH = Goal(1.0, 2.0)
"""Examples in a second over those of full fine-tuning: 2 may be reached; it must be reported."""


def run(plan: Plan) -> Iterator[Measured]:
    cases = MINILM, SMOLLM2
    for group in chosen([*map(beside, cases), *map(equal, cases)], plan):
        small = smaller(group) if plan.smoke else group
        if "full" in group.contenders:
            small = fitted(small)
        turns = plan.turns if "full" in group.contenders else 0
        yield Measured.of(small, *time_in_turns(small, turns))


def beside(case: Case) -> Group:
    sides = {side: Contender(side, case) for side in ("ours", "peft")}
    goal, of = Goal(1.0, 0.7), "temporary_bytes"
    ratio = Ratio("ours", "peft", "peft", of, of_below="growth_bytes", goal=goal)
    return Group(f"{case.model}, {case.method}, {case.rows} x {case.tokens}", sides, (ratio,))


def equal(case: Case) -> Group:
    methods = {"full": {"method": "full"}, "LoRA": {}, "NF4": {"storage": "nf4"}}
    own = {n: Contender("ours", dataclasses.replace(case, **m)) for n, m in methods.items()}
    ratios = [Ratio("full", name, "full", per_row=True, goal=REACH) for name in ("LoRA", "NF4")]
    return Group(f"{case.model}, equal memory", own, tuple(ratios))


def fitted(group: Group) -> Group:
    """The group with the most rows that fit into the memory of full fine-tuning."""
    full, own = group.contenders["full"], {}
    room = facts_of(full)["peak_bytes"]
    for name, each in group.contenders.items():
        rows = full.case.rows if name == "full" else _most_rows(each, room)
        own[name] = dataclasses.replace(each, case=dataclasses.replace(each.case, rows=rows))
    return dataclasses.replace(group, contenders=own)


def _most_rows(contender: Contender, room: float) -> int:
    def peak(rows: int) -> float:
        case = dataclasses.replace(contender.case, rows=rows)
        return facts_of(dataclasses.replace(contender, case=case))["peak_bytes"]

    return most_rows(peak, room, contender.case.rows)


def most_rows(peak: Callable[[int], float], room: float, rows: int) -> int:
    """About the most rows whose peak fits, found by lines through two peaks.

    Args:
      peak: the bytes that so many rows need, which grow about linearly.
      rows: so many fit.
    """
    first = peak(rows)

    def on_line(more: int, needed: float) -> int:
        return int(rows + (room - first) * (more - rows) / (needed - first))

    found = on_line(2 * rows, peak(2 * rows))
    while found > rows and (needed := peak(found)) > room:
        found = min(found - 1, on_line(found, needed))
    return max(found, rows)
