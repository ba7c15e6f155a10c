"""Training steps of Llama shapes with random bfloat16 weights on an accelerator, 2,048 tokens.

Full fine-tuning, LoRA, DoRA and LoRA on NF4 with r=16 on the seven linear layers, each layer
computed again in the backward pass. Full fine-tuning has master weights and moments in float32,
and that of 8B is left out: it needs more than 80 GB. MFU takes the operations of
`theory` without recomputed ones: for LoRA about 4 (not 6) for each weight and token.
"""

import dataclasses
import re
import statistics
from collections.abc import Iterator

import jax

from experiments.benchmarks import theory
from experiments.benchmarks.cases import Case, Contender, Group, Ratio
from experiments.benchmarks.plan import Plan, chosen, smaller
from experiments.benchmarks.results import Measured
from experiments.benchmarks.turns import time_in_turns

AGAINST = ("full",)
TURNS = 5

METHODS = {"full": {"method": "full"}, "LoRA": {}, "DoRA": {"method": "dora"}}
METHODS |= {"QLoRA": {"storage": "nf4"}}
WITH_FULL = ("Llama 1B", "Llama 3B")
WITHOUT_FULL = ("Llama 8B",)
PEAK = {
    **{"H100 PCIe": 756e12, "H100 NVL": 835e12, "H200 NVL": 835e12},
    **{"H100": 989e12, "H200": 989e12, "GH200": 989e12, "A100": 312e12},
    **{"L40S": 362e12, "L40": 181e12, "L4": 121e12},
}
"""Dense bfloat16 operations in a second, from data sheets, by whole words of a device's kind. The
first name that is in it counts."""


def run(plan: Plan) -> Iterator[Measured]:
    if jax.default_backend() == "cpu" and not plan.smoke:
        raise ValueError("--suite=gpu: JAX finds no accelerator; --size=smoke tries it on the CPU")
    kind = jax.devices()[0].device_kind
    for group in chosen(groups(), plan):
        small = smaller(group) if plan.smoke else group
        seconds, facts = time_in_turns(small, plan.turns)
        for name, contender in small.contenders.items():
            facts[name] |= rates(contender.case, statistics.median(seconds[name]), kind)
        yield Measured.of(small, seconds, facts)


def groups() -> list[Group]:
    return [
        *(_group(model, ("full", "LoRA", "DoRA", "QLoRA")) for model in WITH_FULL),
        *(_group(model, ("LoRA", other)) for model in WITHOUT_FULL for other in ("DoRA", "QLoRA")),
    ]


def _group(model: str, names: tuple[str, ...]) -> Group:
    case = Case(model=model, rank=16, rows=1, tokens=2048, dtype="bfloat16", remat=True)
    own = {n: Contender("ours", dataclasses.replace(case, **METHODS[n])) for n in names}
    pairs = [(name, "full" if name == "LoRA" else "LoRA") for name in names if name != "full"]
    ratios = [
        Ratio(above, below, "full", of)
        for above, below in pairs
        if below in own
        for of in ("seconds", "peak_bytes")
    ]
    return Group(f"{model}, {', '.join(names)}", own, tuple(ratios))


def rates(case: Case, seconds: float, kind: str) -> dict[str, float]:
    """Tokens in a second, and the share of the device's peak, if that is known (MFU)."""
    found = {"tokens_per_second": case.rows * case.tokens / seconds}
    peak = next((each for name, each in PEAK.items() if re.search(rf"\b{name}\b", kind)), None)
    if peak is not None:
        found["mfu"] = theory.step_flops(case, recomputed=False) / seconds / peak
    return found
