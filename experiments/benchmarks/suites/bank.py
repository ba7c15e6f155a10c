"""Many adapters on one base: mixed batches, and what it takes to put an adapter into a bank.

SmolLM2-135M has LoRA with r=8 on its seven linear layers. A batch has 512 tokens: 8 rows of 64, or
64 rows of 8. Each row has another adapter, as far as there are as many. One adapter for all rows,
and PEFT's mixed batch (`adapter_names`), compute the same tokens. Naming other slots for the rows,
and putting an adapter into a slot, must compile nothing.

Then clients ask for texts of 32 tokens, after prompts of 16, each of another adapter. The ratio is
of texts in a second: 8 clients over one, which has 8 lanes as well, or one lane.
"""

import dataclasses
from collections.abc import Iterator

from experiments.benchmarks.cases import Case, Contender, Goal, Group, Ratio
from experiments.benchmarks.plan import Plan, measure
from experiments.benchmarks.results import Found, Measured

AGAINST = ("lora", "peft")
TURNS = 10

MIXED = Case(work="mixed", model="smollm2", rows=8, tokens=64)
GOALS = {8: Goal(1.2, 1.05), 64: Goal(1.5, 1.1)}
"""For the seconds of so many mixed adapters over those of one."""
PUT = Case(work="put", model="smollm2", rows=8, tokens=64, adapters=8)
MILLISECONDS = {"from memory": None, "from a file, r=32": Goal(100.0, 50.0)}
COMPILATIONS = Goal(0.0, 0.0)
TEXTS = Case(work="texts", model="smollm2", rows=8, tokens=16, written=32, adapters=8)
CLIENTS = Goal(3.0, 6.0)
"""For the texts in a second of 8 clients over those of one."""


def run(plan: Plan) -> Iterator[Measured]:
    for measured in measure(groups(), plan):
        extra = [
            Found.of(
                f"{name}, milliseconds", goal, [1000 * each for each in measured.seconds[name]]
            )
            for name, goal in MILLISECONDS.items()
            if name in measured.seconds
        ]
        extra += [
            Found.of(f"{name}, compilations", COMPILATIONS, [each["compilations"]])
            for name, each in measured.facts.items()
            if "compilations" in each
        ]
        yield dataclasses.replace(measured, ratios=[*measured.ratios, *extra])


def groups() -> list[Group]:
    many_rows = dataclasses.replace(MIXED, rows=64, tokens=8)
    file = dataclasses.replace(PUT, rank=32, from_disk=True)  # about 40 MB
    one = dataclasses.replace(TEXTS, rows=1)
    clients = {
        "8 clients": Contender("ours", TEXTS),
        "1 client": Contender("ours", one),
        "1 client, 1 lane": Contender("ours", dataclasses.replace(one, lanes=1)),
    }
    ratios = tuple(
        Ratio(alone, "8 clients", "lora", per_row=True, goal=CLIENTS)
        for alone in ("1 client", "1 client, 1 lane")
    )
    put = {"from memory": Contender("ours", PUT), "from a file, r=32": Contender("ours", file)}
    served = Group(f"{TEXTS.model}, texts of {TEXTS.rows} clients", clients, ratios, 1)
    putting = Group("an adapter is put", put, (), 5)
    return [_group(MIXED), _group(many_rows, only=(64,)), served, putting]


def _group(case: Case, only: tuple[int, ...] = (8, 64)) -> Group:
    own = {"one": Contender("ours", dataclasses.replace(case, work="forward"))}
    ratios = []
    for count in only:
        mixed = dataclasses.replace(case, adapters=count)
        own |= {f"{count}": Contender("ours", mixed), f"PEFT, {count}": Contender("peft", mixed)}
        ratios.append(Ratio(f"{count}", "one", "lora", goal=GOALS[count]))
        ratios.append(Ratio(f"PEFT, {count}", f"{count}", "peft", goal=Goal(1.5, 3.0)))
    name = f"{case.model}, {case.rows} x {case.tokens}, of {' or '.join(map(str, only))} adapters"
    return Group(name, own, tuple(ratios), repeats=3)
