"""Tracing and compiling a training step: by method, beside LoRA written by hand, and by layers."""

import dataclasses
from collections.abc import Iterator

from experiments.benchmarks.cases import Contender, Group, Ratio
from experiments.benchmarks.plan import Plan, measure, with_cases
from experiments.benchmarks.results import Measured
from experiments.benchmarks.suites.train import OF_METHODS

AGAINST = ("full", "hand")
TURNS = 5

LAYERS = (6, 12, 24, 48, 49)
"""Up to 48 layers are unrolled on CPUs (`modules.UNROLLED`)."""


def run(plan: Plan) -> Iterator[Measured]:
    return measure([_methods(), _layers()], plan)


def _methods() -> Group:
    timed = with_cases(OF_METHODS, lambda case: dataclasses.replace(case, work="compilation"))
    own = {**timed.contenders, "by hand": Contender("hand", timed.contenders["LoRA"].case)}
    others = (name for name in own if name not in ("full", "LoRA", "by hand"))
    ratios = (
        Ratio("LoRA", "full", "full"),
        *(Ratio(name, "LoRA", "full") for name in others),
        Ratio("LoRA", "by hand", "hand"),
    )
    return Group("minilm, by method", own, ratios, repeats=1)


def _layers() -> Group:
    case = dataclasses.replace(
        OF_METHODS.contenders["LoRA"].case, work="compilation", model="small llama"
    )
    own = {
        f"{layers} layers": Contender("ours", dataclasses.replace(case, layers=layers))
        for layers in LAYERS
    }
    return Group("a small Llama, by layers", own, repeats=1)
