"""What a study compares and how it decides: the `STUDY` of a config file, checked and typed."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

from lora_jax.suggest import require_known

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
        for name in ("rows", "columns", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{where}: {name} must be different, one at least")
        if shared := set(self.seeds) & set(self.tuning.seeds):
            raise ValueError(f"{where}: seed {min(shared)} both chooses a rate and is scored")
        if not self.tuning.seeds or self.tuning.held_out < 1:
            raise ValueError(f"{where}: tuning needs seeds and held-out examples")
        if not 1 <= self.rates.per_decade <= MOST_PER_DECADE:
            raise ValueError(f"{where}: rates need per_decade from 1 to {MOST_PER_DECADE}")
        if self.rates.around < 0 or self.rates.most_more < 0:
            raise ValueError(f"{where}: rates must have no negative number")
        if not (self.margin > 0 and 0 < self.level < 0.5):
            raise ValueError(f"{where}: margin must be above 0, and level between 0 and 0.5")


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
