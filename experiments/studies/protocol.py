"""What a study compares and how it decides: the `STUDY` of a config file, checked and typed.

The grid of learning rates of a study, and the rule by which it grows.

A method's grid lies around the middle rate that its file suggests. If the best rate of any method
of a task lies at an edge, every method gets the next rate on that side, so that all have as many.
"""

import dataclasses
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.analysis.recorded_runs import mean_score, saved_metrics
from lora_jax.data.metrics.label_metrics import LOWER_IS_BETTER
from lora_jax.messages import require_known
from lora_jax.records.run_record import Record

MOST_PER_DECADE = 20
"""Rates have two digits: with many more to a decade, two of them would be one."""

COMPARE = ("reference", "pairs")
"""Which methods a study may compare."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """The learning rates that each method tries, around the middle one that its file suggests."""

    per_decade: int
    """How many steps of the grid make a factor of 10: 2 are half decades."""
    around: int
    """How many steps there are on each side of the middle."""
    most_more: int
    """How many more steps each side may get, where the best rate of any method is at the edge."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """How rates are chosen: by the mean score on held-out training examples."""

    held_out: int
    """How many training examples; runs that choose a rate are scored on them alone."""
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is decided about a study before its first run."""

    rows: tuple[str, ...]
    """The methods."""
    columns: tuple[str, ...]
    """The tasks."""
    reference: str
    """The method that each other one is compared with."""
    rates: Rates
    tuning: Tuning
    seeds: tuple[int, ...]
    """Of the runs with the best rate, which alone are scored on the development set."""
    margin: float
    """Two methods are equivalent if they differ by less, in points of the metric."""
    level: float = 0.05
    """The probability of any false claim in a family of tests.

    There are two families: one is of differences, the other of equivalences.
    """
    compare: str = "reference"
    """The members of each family: each method with the `reference`, or all `pairs` of methods."""
    claims: tuple[str, ...] = ()
    """What the study was made to test, in words."""
    pilots: tuple[str, ...] = ()
    """What was tried before, and what was decided by it, in words."""

    @classmethod
    def of(cls, plain: Mapping[str, Any], where: str) -> "Protocol":
        """The protocol that a config file's STUDY, or a study.json, describes.

        Raises:
          ValueError: a setting is missing, unknown, of another type or out of its range.
        """
        made = _value(plain, cls, where)
        made.require(where)
        return made

    @property
    def tests(self) -> int:
        """How many members each family of tests has."""
        methods = len(self.rows)
        return math.comb(methods, 2) if self.compare == "pairs" else methods - 1

    def require(self, where: str) -> None:
        """Raise a ValueError if settings contradict each other."""
        require_known(self.reference, self.rows, f"{where}: unknown reference '{self.reference}'")
        require_known(self.compare, COMPARE, f"{where}: unknown compare '{self.compare}'")
        shared = set(self.seeds) & set(self.tuning.seeds)
        different = all(
            values and len(set(values)) == len(values)
            for values in (self.rows, self.columns, self.seeds)
        )
        for holds, said in (
            (different, "rows, columns and seeds must be different, one at least"),
            (not shared, f"seed {min(shared, default=0)} both chooses a rate and is scored"),
            (
                self.tuning.seeds and self.tuning.held_out > 0,
                "tuning needs seeds and held-out examples",
            ),
            (
                1 <= self.rates.per_decade <= MOST_PER_DECADE,
                f"rates need per_decade from 1 to {MOST_PER_DECADE}",
            ),
            (
                min(self.rates.around, self.rates.most_more) >= 0,
                "rates must have no negative number",
            ),
            (
                self.margin > 0 and 0 < self.level < 0.5,
                "margin must be above 0, and level between 0 and 0.5",
            ),
        ):
            if not holds:
                raise ValueError(f"{where}: {said}")


def typed(kind: type, plain: Mapping[str, Any], where: str) -> Any:
    """An object of a dataclass from plain data; lists become tuples.

    Raises:
      ValueError: a field is missing, unknown or of another type; the message begins with `where`.
    """
    fields, hints = {f.name: f for f in dataclasses.fields(kind)}, typing.get_type_hints(kind)
    for name in plain:
        require_known(name, fields, f"{where}: unknown setting '{name}'")
    values = {}
    for name, field in fields.items():
        if name not in plain:
            if field.default is dataclasses.MISSING:
                raise ValueError(f"{where}: {name} is missing")
            continue
        values[name] = _value(plain[name], hints[name], f"{where}: {name}")
    return kind(**values)


def _value(value: Any, hint: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be a mapping, got {value!r}")
        return typed(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is tuple:
        (item, _) = typing.get_args(hint)
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, got {value!r}")
        return tuple(_value(each, item, where) for each in value)
    wanted = (int, float) if hint is float else hint
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise ValueError(f"{where} must be of type {hint.__name__}, got {value!r}")
    return hint(value)


def rate_at(middle: float, place: int, per_decade: int) -> float:
    """The rate some steps of the grid above (or below) the middle, with two digits."""
    return float(f"{middle * 10 ** (place / per_decade):.1e}")


def first_places(rates: Rates) -> range:
    """The places of the grid that every method tries in any case; 0 is the middle."""
    return range(-rates.around, rates.around + 1)


def grown(places: Sequence[int], best: Iterable[int], rates: Rates) -> range:
    """The places after the best ones of all methods are known; the same if none is at an edge.

    Args:
      places: those that have been tried, without gaps.
      best: that of each method.
    """
    low, high = min(places), max(places)
    most, found = rates.around + rates.most_more, set(best)
    return range(low - (low in found and low > -most), high + 1 + (high in found and high < most))


def saved_scores(records: Iterable[Record]) -> list[float]:
    """The scores of the adapters that runs saved, as tables and reports have them."""
    known = [saved_metrics(each).get(each.metric) for each in records]
    return [score for score in known if score is not None]


def best_place(tried: Mapping[int, Sequence[Record]]) -> int | None:
    """The place with the best mean score, the lowest of equal ones.

    A place where a run diverged or failed has no score; the result is None if no place has one.

    Args:
      tried: the records of each place, one for each seed.
    """
    means, lower_is_better = dict[int, float](), False
    for place, records in sorted(tried.items()):
        scores = saved_scores(records)
        if len(scores) == len(records) and all(each.status == "completed" for each in records):
            means[place] = mean_score(scores)
            lower_is_better = records[0].metric in LOWER_IS_BETTER
    if not means:
        return None
    return (min if lower_is_better else max)(means, key=means.__getitem__)
