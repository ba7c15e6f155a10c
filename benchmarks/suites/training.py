"""Training steps: beside others, of every method, their memory, and their compilation.

`train` has PEFT, LoRA written by hand, and other methods beside ours.

Both sides train on the same random tokens: forward pass, backward pass, clipping and AdamW, without
dropout. MiniLM is a classifier with batches of 32 x 48 tokens and r=8; SmolLM2-135M learns the next
token of 4 x 128 or 1 x 512 tokens with r=16 on its seven linear layers.

`methods` has every method beside LoRA, for the table of `experiments.methods`.

MiniLM learns from batches of 32 x 48 tokens. Each method has its default settings, and adapts what
its file suggests: by default all linear layers. A method that cannot adapt the model is left out.

`memory` has PEFT beside ours, and the batch that the memory of full training holds.

Ours is what XLA assigns to a step's temporaries; PEFT's is by how much its process grows in a step,
at most. Both have a model and an optimiser before. (The fact `growth_bytes` says the same of our
process, in which the compiler leaves memory behind that the step uses.)

Then LoRA, and LoRA on NF4, get the largest batch whose compiled step needs no more memory than that
of full fine-tuning, parameters and moments included. The ratio is of examples in a second.

`compile` times tracing and compiling a step: by method, and beside LoRA by hand.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator

import variants
from benchmarks import models
from benchmarks.cases import Case, Contender, Goal, Group, Plan, Ratio, chosen, smaller, with_cases
from benchmarks.results import Measured
from benchmarks.turns import Suite, facts_of, measure, time_in_turns

CASES = (
    (Case(targets="query, value"), Goal(1.0, 1.15), Goal(0.9, 1.1)),
    (Case(), Goal(1.0, 1.25), Goal(1.1, 1.4)),
    (Case(method="dora"), Goal(1.4, 1.7), Goal(1.6, 2.0)),
    (Case(method="adalora"), Goal(1.1, 1.4), Goal(1.2, 1.5)),
    (Case(method="full"), Goal(0.9, 1.0), Goal(0.9, 1.1)),
)
"""MiniLM's methods, and the goals for PEFT/ours in float32 and with bfloat16 products."""
DTYPES = ("float32", "bfloat16")
"""Of the operands of products."""
SMOLLM2 = Case(model="smollm2", rank=16, rows=4, tokens=128)
SAME_AS_BY_HAND = Goal(1.02, 1.0)
FULL = Contender("ours", Case(method="full"))
LORA = Contender("ours", Case())
OF_METHODS = Group(
    "methods, all",
    {
        "full": FULL,
        "LoRA": LORA,
        "DoRA": Contender("ours", Case(method="dora")),
        "AdaLoRA": Contender("ours", Case(method="adalora")),
        "LoRA+": Contender("ours", Case(method="lora_plus")),
        "NF4": Contender("ours", Case(storage="nf4")),
    },
    (
        Ratio("LoRA", "full", "full", goal=Goal(0.75, 0.62)),
        Ratio("DoRA", "LoRA", "full", goal=Goal(1.15, 1.05)),
        Ratio("AdaLoRA", "LoRA", "full", goal=Goal(1.1, 1.03)),
        Ratio("LoRA+", "LoRA", "full", goal=Goal(1.01, 1.0)),
        Ratio("NF4", "LoRA", "full", goal=Goal(1.15, 1.05)),
    ),
)
_IMAGES = Case(rows=16, tokens=96, targets="all-linear")
_CONVOLUTIONS = dataclasses.replace(_IMAGES, targets="all-linear+conv")
CONVNEXT = Group(
    "convnext, 16 images of 96 x 96",
    {
        "full": Contender("convnext", dataclasses.replace(_IMAGES, method="full")),
        "LoRA": Contender("convnext", _IMAGES),
        "LoRA, all convolutions": Contender("convnext", _CONVOLUTIONS),
        "hand": Contender("convnext", dataclasses.replace(_IMAGES, method="hand")),
    },
    (
        Ratio("LoRA", "full", "full", goal=Goal(0.75, 0.62)),
        Ratio("LoRA", "full", "full", "temporary_bytes", goal=Goal(1.0, 0.62)),
        Ratio("LoRA, all convolutions", "full", "full", goal=Goal(0.75, 0.62)),
        Ratio("LoRA, all convolutions", "full", "full", "temporary_bytes", goal=Goal(1.0, 0.62)),
        Ratio("LoRA", "hand", "hand", goal=SAME_AS_BY_HAND),
        Ratio("LoRA", "hand", "hand", "temporary_bytes", goal=SAME_AS_BY_HAND),
    ),
)
REACH = Goal(1.0, 2.0)
"""Examples in a second over those of full fine-tuning: 2 may be reached; it must be reported."""


def train_groups() -> list[Group]:
    found = [
        _beside_others(
            dataclasses.replace(case, products=dtype), dict(zip(DTYPES, goals, strict=True))
        )
        for dtype in DTYPES
        for case, *goals in CASES
    ]
    for dtype in DTYPES:
        for rows, tokens in ((4, 128), (1, 512)):
            case = dataclasses.replace(SMOLLM2, rows=rows, tokens=tokens, products=dtype)
            found.append(_beside_others(case, {dtype: Goal(1.0, 1.3)}))
    return [*found, OF_METHODS, CONVNEXT]


def _beside_others(case: Case, goals: dict[str, Goal]) -> Group:
    """Ours beside the others with the same case; by hand only LoRA in float32."""
    contenders = {side: Contender(side, case) for side in ("ours", "peft")}
    ratios = [Ratio("peft", "ours", "peft", goal=goals[case.products])]
    if (case.method, case.products) == ("lora", "float32"):
        contenders["hand"] = Contender("hand", case)
        for of in ("seconds", "flops", "temporary_bytes"):
            ratios.append(Ratio("ours", "hand", "hand", of, goal=SAME_AS_BY_HAND))
        if models.family(case) == "bert":
            # XLA:CPU makes less of the products by hand where layers are unrolled, our default.
            contenders["hand, scanned"] = Contender("hand", dataclasses.replace(case, unroll=1))
            ratios.append(Ratio("ours", "hand, scanned", "hand", goal=SAME_AS_BY_HAND))
    shape = f"{case.rows} x {case.tokens}, {case.products}"
    method = case.method if case.method == "full" else f"{case.method} on {case.targets}"
    return Group(f"{case.model}, {method}, {shape}", contenders, tuple(ratios))


TRAIN = Suite(("peft", "hand", "full"), 10, lambda plan: measure(train_groups(), plan))


def _methods(plan: Plan) -> Iterator[Measured]:
    wanted, measured = chosen(method_groups(), plan), 0
    for group in wanted:
        try:
            yield from measure([group], dataclasses.replace(plan, cases=()))
            measured += 1
        except ValueError as error:
            print(f"without {group.name}: {error}", file=sys.stderr)
    if not measured:
        raise ValueError(f"none of {', '.join(group.name for group in wanted)} can be timed")


def method_groups() -> list[Group]:
    """A pair for each method but LoRA, named as the method."""
    return [_method(name) for name in variants.names() if name != "lora"]


def _method(name: str) -> Group:
    pair = {each: Contender("ours", Case(method=each, rank=0)) for each in (name, "lora")}
    return Group(name, pair, (Ratio(name, "lora", "lora"),))


METHODS = Suite(("lora",), 5, _methods)


def _memory(plan: Plan) -> Iterator[Measured]:
    cases = Case(), SMOLLM2
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


MEMORY = Suite(("peft", "full"), 5, _memory)


def _by_method() -> Group:
    timed = with_cases(OF_METHODS, lambda case: dataclasses.replace(case, work="compilation"))
    own = {**timed.contenders, "by hand": Contender("hand", timed.contenders["LoRA"].case)}
    others = (name for name in own if name not in ("full", "LoRA", "by hand"))
    ratios = (
        Ratio("LoRA", "full", "full"),
        *(Ratio(name, "LoRA", "full") for name in others),
        Ratio("LoRA", "by hand", "hand"),
    )
    return Group("minilm, by method", own, ratios, repeats=1)


COMPILE = Suite(("full", "hand"), 5, lambda plan: measure([_by_method()], plan))
