"""What a suite has measured: times and facts, ratios and curves of them, and their tables."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import Goal, Group, Plan, Ratio
from experiments.setup.devices import core_count
from lora_jax.files.marked_documents import fill_blocks
from lora_jax.records.environment import environment, processor_model
from lora_jax.table import Table

RESULTS = Path(__file__).parents[1] / "experiments" / "results" / "bench"
RATIOS = ("group", "what", "ratio", "quartiles", "must be", "may reach")
CURVES = ("of", "over", "from", "to", "exponent", "in theory")


@dataclasses.dataclass(frozen=True)
class Found:
    """A ratio: the median over neighbouring turns, and its quartiles; equal ones for a fact."""

    what: str
    """Such as `peft/ours`, and of what if not of seconds."""
    middle: float
    low: float
    high: float
    must: float | None = None
    reach: float | None = None
    """The goal, if there is one (`cases.Goal`)."""

    @classmethod
    def of(cls, what: str, goal: Goal | None, values: Sequence[float]) -> "Found":
        """The ratio of a quantity whose value in each turn is given."""
        several = values if len(values) > 1 else (*values, *values)
        low, middle, high = statistics.quantiles(several, n=4, method="inclusive")
        return cls(what, middle, low, high, *(dataclasses.astuple(goal) if goal else ()))

    @property
    def met(self) -> bool | None:
        """Whether the median meets the goal; None without a goal."""
        if self.must is None or self.reach is None:
            return None
        return Goal(self.must, self.reach).met(self.middle)


@dataclasses.dataclass(frozen=True)
class Curve:
    """A quantity over something that grows, with its growth in theory.

    Exponents are the slopes of lines fitted to the logarithms of both, by least squares.
    """

    over: str
    of: str
    at: list[float]
    values: list[float]
    analytic: dict[str, list[float]]
    """The same quantity in theory, by what bounds it (`flops`, `bytes`), in any unit."""

    @property
    def exponent(self) -> float:
        return exponent(self.at, self.values)

    @property
    def allowed(self) -> float:
        """The largest exponent in theory."""
        return max(exponent(self.at, values) for values in self.analytic.values())


def exponent(at: Sequence[float], values: Sequence[float]) -> float:
    """The slope of the line through the logarithms, by least squares; NaN for a value of 0."""
    if min(values) <= 0:
        return math.nan
    return statistics.linear_regression(*(list(map(math.log, each)) for each in (at, values))).slope


@dataclasses.dataclass(frozen=True)
class Measured:
    """The result of one group."""

    name: str
    contenders: dict[str, Any] = dataclasses.field(default_factory=dict)
    """By name: what it was, and all settings of its case."""
    seconds: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    """Of each turn, by contender; those with the same number were neighbours."""
    facts: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    ratios: list[Found] = dataclasses.field(default_factory=list)
    curves: list[Curve] = dataclasses.field(default_factory=list)

    @classmethod
    def of(
        cls,
        group: Group,
        seconds: dict[str, list[float]],
        facts: dict[str, dict[str, float]],
    ) -> "Measured":
        """The result of a group with its ratios."""
        contenders = {name: dataclasses.asdict(each) for name, each in group.contenders.items()}
        found = [_ratio(group, each, seconds, facts) for each in group.ratios]
        ratios = [each for each in found if each is not None]
        return cls(group.name, contenders, seconds, facts, ratios)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Measured":
        kinds = {"ratios": Found, "curves": Curve}
        lists = {name: [kind(**each) for each in content[name]] for name, kind in kinds.items()}
        return cls(**{**content, **lists})


def _ratio(
    group: Group,
    ratio: Ratio,
    seconds: Mapping[str, Sequence[float]],
    facts: Mapping[str, Mapping[str, float]],
) -> Found | None:
    """A ratio; None if a fact is not known here."""

    def values(name: str, of: str) -> list[float]:
        found = seconds[name] if of == "seconds" else [facts[name].get(of, 0.0)]
        rows = group.contenders[name].case.rows if ratio.per_row else 1
        return [each / rows for each in found]

    of_below = ratio.of_below or ratio.of
    above, below = values(ratio.above, ratio.of), values(ratio.below, of_below)
    if not all((*above, *below)):
        return None
    what = f"{ratio.above}/{ratio.below}"
    what += f", {ratio.of.replace('_', ' ')}" * (ratio.of != "seconds")
    what += f"/{ratio.of_below.replace('_', ' ')}" * bool(ratio.of_below)
    what += ", for each row" * ratio.per_row
    pairs = zip(above, below, strict=True)
    return Found.of(what, ratio.goal, [one / other for one, other in pairs])


OTHERS = ("torch", "transformers", "peft")
"""Packages whose versions are noted where they are installed."""


def machine() -> dict[str, Any]:
    """What the times depend on beside the code."""
    names = ("MALLOC_", "GLIBC_TUNABLES", "XLA_", "JAX_", "OMP_", "LD_PRELOAD")
    own = {name: value for name, value in sorted(os.environ.items()) if name.startswith(names)}
    known = environment()
    others = (name for name in OTHERS if importlib.util.find_spec(name) is not None)
    known["versions"] |= {name: importlib.metadata.version(name) for name in others}
    return {
        **known,
        "processor": processor_model(),
        "cores": core_count(),
        "load": os.getloadavg(),
        "settings": own,
    }


def content(suite: str, plan: Plan, found: Sequence[Measured]) -> dict[str, Any]:
    """All that was measured, with the machine that it was measured on, as JSON values."""
    groups = [dataclasses.asdict(each) for each in found]
    head = {"suite": suite, **dataclasses.asdict(plan), "machine": machine()}
    return json.loads(json.dumps({**head, "groups": groups}))


def summary(measured: Sequence[Measured]) -> str:
    """The ratios and exponents of groups, as documents show them."""
    ratios = [[each.name, *_ratio_row(found)] for each in measured for found in each.ratios]
    curves = [_curve_row(curve) for each in measured for curve in each.curves]
    tables = Table(RATIOS, ratios), Table(CURVES, curves)
    return "\n\n".join(each.to_markdown(escape=False) for each in tables if each.rows)


def fill(text: str, results: Path = RESULTS) -> str:
    """The text with every table between markers made from the file of its suite.

    The markers are `<!-- bench: train -->` and `<!-- /bench -->`.

    Raises:
      FileNotFoundError: a suite has no file.
    """

    def table(name: str) -> str:
        whole = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        return summary([Measured.from_json(each) for each in whole["groups"]])

    return fill_blocks(text, "bench", table)


def _ratio_row(found: Found) -> list[str]:
    if found.must is None or found.reach is None:
        goal = ["", ""]
    else:
        sign = "≥" if found.reach > found.must else "≤"
        goal = [f"{sign} {found.must:g}{'' if found.met else ', missed'}", f"{found.reach:g}"]
    spread = "" if found.low == found.high else f"{found.low:.2f} to {found.high:.2f}"
    close = found.met is False and f"{found.middle:.2f}" == f"{found.must:.2f}"
    return [found.what, f"{found.middle:.{4 if close else 2}f}", spread, *goal]


def _curve_row(curve: Curve) -> list[str]:
    ends = [f"{curve.at[0]:,g}", f"{curve.at[-1]:,g}"]
    return [curve.of, curve.over, *ends, f"{curve.exponent:.2f}", f"{curve.allowed:.2f}"]
