"""Forward passes, generated texts, and many adapters on one base.

`infer`: Forward passes with an adapter beside the base, and merged into it, beside the base alone.

`generate`: Greedy generation by SmolLM2-135M with its cache: 64 tokens after prompts of 64, 1 and 8
rows.

The ratio to transformers is of seconds, and so of tokens in a second.

`bank`: Many adapters on one base: mixed batches, and what it takes to put an adapter into a bank.

SmolLM2-135M has LoRA with r=8 on its seven linear layers. A batch has 512 tokens: 8 rows of 64, or
64 rows of 8. Each row has another adapter, as far as there are as many. One adapter for all rows,
and PEFT's mixed batch (`adapter_names`), compute the same tokens. Naming other slots for the rows,
and putting an adapter into a slot, must compile nothing.

Then clients ask for texts of 32 tokens, after prompts of 16, each of another adapter. The ratio is
of texts in a second: 8 clients over one, which has 8 lanes as well, or one lane.

At last, all 8 clients ask for the base, for a LoRA or for a DoRA, of a bank without DoRA, with one
in a slot, and with one that has been unloaded. The ratios are of seconds.
"""

import dataclasses
from collections.abc import Iterator

from benchmarks.cases import Case, Contender, Goal, Group, Plan, Ratio
from benchmarks.results import Found, Measured
from benchmarks.turns import Suite, measure

INFER_CASES = (
    Case(work="forward"),
    Case(work="forward", method="dora"),
    Case(work="forward", model="smollm2", rank=16, rows=4, tokens=128),
)
INFER_GOALS = {"merged": Goal(1.02, 1.0), "unmerged": Goal(1.15, 1.07)}
WRITING = Case(work="generation", model="smollm2", rank=16, tokens=64, weights="base")
MIXED = Case(work="mixed", model="smollm2", rows=8, tokens=64)
GOALS = {8: Goal(1.2, 1.05), 64: Goal(1.5, 1.1)}
"""For the seconds of so many mixed adapters over those of one."""
PUT = Case(work="put", model="smollm2", rows=8, tokens=64, adapters=8)
MILLISECONDS = {"from memory": None, "from a file, r=32": Goal(100.0, 50.0)}
COMPILATIONS = Goal(0.0, 0.0)
TEXTS = Case(work="texts", model="smollm2", rows=8, tokens=16, written=32, adapters=8)
BESIDE = dataclasses.replace(TEXTS, written=16, adapters=2, slot=1)
CLIENTS = Goal(3.0, 6.0)
"""For the texts in a second of 8 clients over those of one."""


def _infer(case: Case) -> Group:
    names = ("base", "merged", "unmerged")
    own = {name: Contender("ours", dataclasses.replace(case, weights=name)) for name in names}
    ratios = tuple(Ratio(name, "base", "merged", goal=goal) for name, goal in INFER_GOALS.items())
    shape = f"{case.rows} x {case.tokens}"
    return Group(f"{case.model}, {case.method} on {case.targets}, {shape}", own, ratios, repeats=5)


INFER = Suite(("merged",), 10, lambda plan: measure(map(_infer, INFER_CASES), plan))


def _generate(rows: int) -> Group:
    base = dataclasses.replace(WRITING, rows=rows)
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


GENERATE = Suite(("peft", "merged"), 5, lambda plan: measure(map(_generate, (1, 8)), plan))


def _bank(plan: Plan) -> Iterator[Measured]:
    for measured in measure(bank_groups(), plan):
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


def bank_groups() -> list[Group]:
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
    return [_mixed(MIXED), _mixed(many_rows, only=(64,)), served, putting, _beside_dora()]


def _beside_dora() -> Group:
    own = {
        "base": dataclasses.replace(BESIDE, slot=0),
        "LoRA": BESIDE,
        "base beside DoRA": dataclasses.replace(BESIDE, slot=0, dora="there"),
        "LoRA beside DoRA": dataclasses.replace(BESIDE, dora="there"),
        "DoRA": dataclasses.replace(BESIDE, slot=2, dora="there"),
        "LoRA after DoRA": dataclasses.replace(BESIDE, dora="gone"),
    }
    ratios = tuple(
        Ratio(above, below, "lora", goal=goal)
        for above, below, goal in (
            ("base beside DoRA", "base", Goal(1.1, 1.0)),
            ("LoRA beside DoRA", "LoRA", Goal(1.1, 1.0)),
            ("DoRA", "LoRA beside DoRA", Goal(1.2, 1.0)),
            ("LoRA after DoRA", "LoRA", Goal(1.05, 1.0)),
        )
    )
    contenders = {name: Contender("ours", case) for name, case in own.items()}
    return Group(f"{BESIDE.model}, texts beside DoRA", contenders, ratios, 1)


def _mixed(case: Case, only: tuple[int, ...] = (8, 64)) -> Group:
    own = {"one": Contender("ours", dataclasses.replace(case, work="forward"))}
    ratios = []
    for count in only:
        mixed = dataclasses.replace(case, adapters=count)
        own |= {f"{count}": Contender("ours", mixed), f"PEFT, {count}": Contender("peft", mixed)}
        ratios.append(Ratio(f"{count}", "one", "lora", goal=GOALS[count]))
        ratios.append(Ratio(f"PEFT, {count}", f"{count}", "peft", goal=Goal(1.5, 3.0)))
    name = f"{case.model}, {case.rows} x {case.tokens}, of {' or '.join(map(str, only))} adapters"
    return Group(name, own, tuple(ratios), repeats=3)


BANK = Suite(("lora", "peft"), 10, _bank)
