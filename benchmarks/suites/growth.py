"""How time and memory grow, and Llama shapes on an accelerator.

`scale`: How a step's time, memory and compile time grow, and the start of a run with its examples.

A small random Llama learns with LoRA; one number at a time grows. The exponent of each curve stands
beside the largest one in theory, that of the operations and of the bytes of a step as it is traced
(`lora_jax.compiled.jaxpr_costs`).

`gpu`: Training steps of Llama shapes with random bfloat16 weights on an accelerator, 2,048 tokens.

Full fine-tuning, LoRA, DoRA and LoRA on NF4 with r=16 on the seven linear layers, each layer
computed again in the backward pass. Full fine-tuning has master weights and moments in float32, and
that of 8B is left out: it needs more than 80 GB. The share of the device's peak counts all products
of the step, recomputed ones too.
"""

import dataclasses
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from benchmarks import models
from benchmarks.cases import Case, Contender, Group, Plan, Ratio, chosen, smaller
from benchmarks.results import Curve, Measured
from benchmarks.turns import Suite, time_in_turns

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


def _scale(plan: Plan) -> Iterator[Measured]:
    axes = {axis.name: axis for axis in AXES}
    for each in chosen([group(axis, plan.smoke) for axis in AXES], plan):
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
        counted = {"flops": "product_flops", "bytes": "held_bytes"}
        theoretical = {
            of: [measured.facts[name][fact] for name in cases] for of, fact in counted.items()
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


SCALE = Suite((), 5, _scale)


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


def _gpu(plan: Plan) -> Iterator[Measured]:
    if jax.default_backend() == "cpu" and not plan.smoke:
        raise ValueError("--suite=gpu: JAX finds no accelerator; --size=smoke tries it on the CPU")
    kind = jax.devices()[0].device_kind
    for group in chosen(gpu_groups(), plan):
        small = smaller(group) if plan.smoke else group
        seconds, facts = time_in_turns(small, plan.turns)
        for name, contender in small.contenders.items():
            took, flops = statistics.median(seconds[name]), facts[name]["product_flops"]
            facts[name] |= rates(contender.case, flops, took, kind)
        yield Measured.of(small, seconds, facts)


def gpu_groups() -> list[Group]:
    return [
        *(_llama(model, ("full", "LoRA", "DoRA", "QLoRA")) for model in WITH_FULL),
        *(_llama(model, ("LoRA", other)) for model in WITHOUT_FULL for other in ("DoRA", "QLoRA")),
    ]


def _llama(model: str, names: tuple[str, ...]) -> Group:
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


def rates(case: Case, flops: float, seconds: float, kind: str) -> dict[str, float]:
    """Tokens in a second, and the share of the device's peak, if that is known."""
    found = {"tokens_per_second": case.rows * case.tokens / seconds}
    peak = next((each for name, each in PEAK.items() if re.search(rf"\b{name}\b", kind)), None)
    if peak is not None:
        found["share_of_peak"] = flops / seconds / peak
    return found


GPU = Suite(("full",), 5, _gpu)
