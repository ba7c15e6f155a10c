"""Tables of what differences a study shows, and how many seeds and test examples one needs."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from experiments.analysis import power
from lora_jax.table import Table

_OVER = f"> {power.MOST_SEEDS}"
_NEVER = "never"
TIMES = (0.5, 1.0, 2.0, 4.0, 10.0)
"""How many times the seeds and the test examples of today the grid has."""


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
        return all(task.squares(2).variance for task in self.design.tasks)

    @property
    def has_examples(self) -> bool:
        """Whether the noise of examples is known on any task."""
        return any(math.isfinite(task.n) for task in self.design.tasks)


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
        f"examples to find {asked.difference:g}": [
            _examples(power.examples_to_detect, row, asked) for row in rows
        ],
        f"seeds to show less than {asked.difference:g}": [
            _seeds(power.seeds_to_show, row, asked) for row in rows
        ],
        f"examples to show less than {asked.difference:g}": [
            _examples(power.examples_to_show, row, asked) for row in rows
        ],
    }
    shown = {head: cells for head, cells in columns.items() if any(cells)}
    return Table(tuple(shown), list(zip(*shown.values(), strict=True))).to_text()


def _smallest(find: Callable[..., float], row: Row, asked: Question) -> float | None:
    known = row.varies and row.error
    return find(row.error, row.df, asked.first, asked.power) if known else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _seeds(needed: Callable[..., int | None], row: Row, asked: Question) -> str:
    """`never` where test examples alone leave too large an error."""
    if not row.varies:
        return ""
    seeds = needed(row.design, asked.difference, asked.first, asked.power)
    if seeds is None:
        return _NEVER if row.design.of_examples else _OVER
    return str(seeds)


def _examples(needed: Callable[..., float | None], row: Row, asked: Question) -> str:
    """As many times those of today; `never` where the seeds alone leave too large an error."""
    if not (row.varies and row.has_examples and row.seeds):
        return ""
    times = needed(row.design, row.seeds, asked.difference, asked.first, asked.power)
    return _NEVER if times is None else _times(times)


def _times(times: float) -> str:
    return f"{times:.2g} times" if times < 10 else f"{times:.0f} times"


def parts_table(tasks: Mapping[str, power.Task]) -> str:
    """What the noise of one method's differences is of, by task."""
    heads = ("", "examples", "sd of seeds", "sd of examples", "sd of the rest")
    rows = [
        [name, f"{task.n:g}" if math.isfinite(task.n) else "", _number(task.seeds)]
        + [_number(each) if math.isfinite(task.n) else "" for each in (task.examples, task.rest)]
        for name, task in tasks.items()
    ]
    return Table(heads, rows).to_text()


def grid(row: Row, asked: Question) -> str:
    """The smallest difference found, of so many seeds (rows) and times the examples (columns)."""
    seeds = sorted({max(2, round(times * (row.seeds or 2))) for times in TIMES})
    found = [
        [str(n)]
        + [
            _number(
                power.detectable(
                    row.design.error(n, times), row.design.df(n, times), asked.first, asked.power
                )
            )
            for times in TIMES
        ]
        for n in seeds
    ]
    return Table(("seeds", *(f"{times:g} times" for times in TIMES)), found).to_text()
