"""A table of what differences a number of seeds shows, and how many seeds a difference needs."""

import dataclasses
from collections.abc import Callable, Sequence

from experiments.analysis import power
from lora_jax.text_table import text_table

_OVER = f"> {power.MOST_SEEDS}"


@dataclasses.dataclass(frozen=True)
class Question:
    """The difference in points that is to be shown, with what power, in how large a family."""

    difference: float
    power: float
    level: float
    tests: int

    def __str__(self) -> str:
        family = f"{self.level:g}"
        if self.tests > 1:
            family += f" for {self.tests} tests, so {self.first:.2g} for Holm's first"
        return f"Power {100 * self.power:g}%, level {family}."

    @property
    def first(self) -> float:
        """The level of the first step of Holm's procedure."""
        return power.family_level(self.level, self.tests)


@dataclasses.dataclass(frozen=True)
class Row:
    """A task, or the mean over tasks, and what is known of its seeds."""

    name: str
    design: power.Design
    seeds: int | None = None
    variance: float | None = None
    """That of paired differences, if that without pairs is 1."""


def power_table(rows: Sequence[Row], asked: Question) -> str:
    """The table; columns of which no row knows anything are left out.

    Nothing is known of a task whose differences do not vary.
    """
    columns = {
        "": [row.name for row in rows],
        "sd": [_sd(row.design) for row in rows],
        "variance with pairs": [_number(row.variance) for row in rows],
        "seeds": [str(row.seeds or "") for row in rows],
        "smallest found": [_number(_smallest(power.detectable, row, asked)) for row in rows],
        "smallest margin": [_number(_smallest(power.showable, row, asked)) for row in rows],
        f"seeds to find {asked.difference:g}": [
            _seeds(power.seeds_to_detect, row, asked) for row in rows
        ],
        f"seeds to show less than {asked.difference:g}": [
            _seeds(power.seeds_to_show, row, asked) for row in rows
        ],
    }
    shown = {head: cells for head, cells in columns.items() if any(cells)}
    return text_table(tuple(shown), list(zip(*shown.values(), strict=True)))


def _sd(design: power.Design) -> str:
    return f"{design.deviations[0]:.2f}" if len(design.deviations) == 1 else ""


def _varies(row: Row) -> bool:
    return any(row.design.deviations)


def _smallest(find: Callable[..., float | None], row: Row, asked: Question) -> float | None:
    if row.seeds is None or not _varies(row):
        return None
    error, df = row.design.error(row.seeds), row.design.df(row.seeds)
    return find(error, df, asked.first, asked.power)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _seeds(needed: Callable[..., int | None], row: Row, asked: Question) -> str:
    if not _varies(row):
        return ""
    seeds = needed(row.design, asked.difference, asked.first, asked.power)
    return _OVER if seeds is None else str(seeds)
