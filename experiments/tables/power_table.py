"""A table of what differences a number of seeds shows, and how many seeds a difference needs."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

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
    """What is known of the differences of one method, on a task or on average over several."""

    name: str
    design: power.Design
    shown: Mapping[str, float]
    """The standard deviations that the table shows, by the head of their column."""
    seeds: int | None = None
    error: float | None = None
    """The standard error with these seeds; without one, nothing is said of them."""
    df: float = 0.0
    """The error's degrees of freedom."""
    variance: float | None = None
    """That of the mean, if that without pairs is 1."""

    @property
    def varies(self) -> bool:
        """Whether differences vary on each task: otherwise their noise is not known."""
        return all(self.design.deviations)


def power_table(rows: Sequence[Row], asked: Question) -> str:
    """The table; columns of which no row knows anything are left out.

    Nothing is said of differences that do not vary.
    """
    heads = dict.fromkeys(head for row in rows for head in row.shown)
    columns = {
        "": [row.name for row in rows],
        **{head: [_number(row.shown.get(head)) for row in rows] for head in heads},
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


def _smallest(find: Callable[..., float], row: Row, asked: Question) -> float | None:
    known = row.varies and row.error
    return find(row.error, row.df, asked.first, asked.power) if known else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _seeds(needed: Callable[..., int | None], row: Row, asked: Question) -> str:
    if not row.varies:
        return ""
    seeds = needed(row.design, asked.difference, asked.first, asked.power)
    return _OVER if seeds is None else str(seeds)
