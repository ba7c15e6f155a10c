"""Training steps beside those of PEFT, of Qwix, of LoRA written by hand, and of other methods.

Both sides train on the same random tokens: forward pass, backward pass, clipping and AdamW, without
dropout. MiniLM is a classifier with batches of 32 x 48 tokens and r=8; SmolLM2-135M learns the next
token of 4 x 128 or 1 x 512 tokens with r=16 on its seven linear layers.
"""

import dataclasses
from collections.abc import Iterator

from experiments.benchmarks import models
from experiments.benchmarks.cases import Case, Contender, Goal, Group, Ratio
from experiments.benchmarks.plan import Plan, measure
from experiments.benchmarks.results import Measured

AGAINST = ("peft", "hand", "full", "qwix")
TURNS = 10

METHODS = (
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


def run(plan: Plan) -> Iterator[Measured]:
    return measure(groups(), plan)


def groups() -> list[Group]:
    found = [
        _group(dataclasses.replace(case, products=dtype), dict(zip(DTYPES, goals, strict=True)))
        for dtype in DTYPES
        for case, *goals in METHODS
    ]
    for dtype in DTYPES:
        for rows, tokens in ((4, 128), (1, 512)):
            case = dataclasses.replace(SMOLLM2, rows=rows, tokens=tokens, products=dtype)
            found.append(_group(case, {dtype: Goal(1.0, 1.3)}))
    return [*found, OF_METHODS]


def _group(case: Case, goals: dict[str, Goal]) -> Group:
    """Ours beside the others with the same case; by hand and by Qwix only LoRA in float32."""
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
            contenders["qwix"] = Contender("qwix", case)
            ratios.append(Ratio("qwix", "ours", "qwix"))
    shape = f"{case.rows} x {case.tokens}, {case.products}"
    method = case.method if case.method == "full" else f"{case.method} on {case.targets}"
    return Group(f"{case.model}, {method}, {shape}", contenders, tuple(ratios))
