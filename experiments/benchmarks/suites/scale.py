"""How a step's time, memory and compile time grow, and the start of a run with its examples.

A small random Llama learns with LoRA; one number at a time grows. The exponent of each curve stands
beside the largest one in theory, that of the operations and of the bytes of a step (`theory`).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from experiments.benchmarks import models, theory
from experiments.benchmarks.cases import Case, Contender, Group
from experiments.benchmarks.plan import Plan, chosen
from experiments.benchmarks.results import Curve, Measured
from experiments.benchmarks.turns import time_in_turns

AGAINST = ()
TURNS = 5

STEP = Case(model="small llama", rows=4, tokens=128)
DATA = Case(work="data")
TINY: Any = {"model": "tiny llama", "rows": 1, "tokens": 16}


@dataclasses.dataclass(frozen=True)
class Axis:
    """What grows: a field of the case, and its values, with a number for each."""

    name: str
    field: str
    values: Sequence[Any]
    base: Case = STEP
    number: Callable[[Any], float] = float

    def cases(self, smoke: bool = False) -> dict[float, Case]:
        """The case at each number; of a tiny model and the first two numbers for `smoke`."""
        base = dataclasses.replace(self.base, **TINY) if smoke else self.base
        values = self.values[:2] if smoke else self.values
        made = (dataclasses.replace(base, **{self.field: each}) for each in values)
        return dict(zip(map(self.number, values), made, strict=True))


AXES = (
    Axis("rank", "rank", (4, 8, 16, 32, 64, 128, 256)),
    Axis("layers", "layers", (6, 12, 24, 48)),
    # One row and two layers: the scores of 4,096 tokens would not fit otherwise.
    Axis(
        "tokens",
        "tokens",
        (128, 256, 512, 1024, 2048, 4096),
        dataclasses.replace(STEP, rows=1, layers=2),
    ),
    Axis(
        "trials",
        "trials",
        (1, 2, 4, 8, 16, 32),
        dataclasses.replace(STEP, work="trials", rows=1, layers=2),
    ),
    Axis(
        "targets",
        "targets",
        ("query", "query, value", "attention", "all"),
        number=lambda name: len(models.TARGETS[name]),
    ),
    Axis("examples", "examples", (1_000, 10_000, 100_000, 400_000), DATA),
)


def run(plan: Plan) -> Iterator[Measured]:
    axes = {axis.name: axis for axis in AXES}
    groups = [group(axis, plan.smoke) for axis in AXES]
    for each in chosen(groups, plan):
        measured = Measured.of(each, *time_in_turns(each, plan.turns))
        yield dataclasses.replace(measured, curves=curves(axes[each.name], each, measured))


def group(axis: Axis, smoke: bool = False) -> Group:
    """A contender for each number of an axis."""
    own = {f"{at:g}": Contender("ours", case) for at, case in axis.cases(smoke).items()}
    return Group(axis.name, own, repeats=1 if axis.base is DATA else 3)


def curves(axis: Axis, group: Group, measured: Measured) -> list[Curve]:
    """The curves of a group: seconds, and what is known of its steps."""
    cases = {name: each.case for name, each in group.contenders.items()}
    if axis.base is DATA:
        linear = {"bytes": [float(each.examples) for each in cases.values()]}
        known: Mapping[str, Mapping[str, list[float]]] = {"growth_bytes": linear}
        theoretical = linear
    else:
        theoretical = {
            "flops": [theory.step_flops(each) for each in cases.values()],
            "bytes": [theory.step_bytes(each) for each in cases.values()],
        }
        in_bytes = {"bytes": theoretical["bytes"]}
        known = {"peak_bytes": in_bytes, "compile_seconds": theoretical}
    at = [float(name) for name in cases]
    least = [min(measured.seconds[name]) for name in cases]
    found = [Curve(axis.name, "seconds", at, least, dict(theoretical))]
    for of, analytic in known.items():
        values = [measured.facts[name].get(of, 0.0) for name in cases]
        if all(values):  # else it is not known here
            found.append(Curve(axis.name, of, at, values, dict(analytic)))
    return found
