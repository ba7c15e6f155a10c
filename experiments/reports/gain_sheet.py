"""The table of a study's gains over its reference, over all tasks together."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from experiments.analysis.gains import Estimate, Gain, Gains
from experiments.analysis.significance import FEWEST_TASKS
from experiments.analysis.task_evidence import Evidence
from experiments.reports.sheets import DECIMALS, p_text
from lora_jax.table import NONE, Table

NOTE = (
    "A mean gain is over all tasks, with the same weight; where a method lacks some, the row says "
    "so. p (Holm) is that of no difference, in the family of all methods, or of all pairs where "
    "these are compared; the p of equivalence is that of two one-sided tests against the margin; "
    "if it is small, a method that is better or worse is so by less than the margin. The upper "
    "bound is one-sided. Detectable is the smallest difference that the test would find with a "
    "power of 80%. Such tasks: the mean of all tasks of which these are a sample, by a t-test of "
    "the tasks' gains; where these tasks alone have the wider interval, it is that; fewer than "
    f"{FEWEST_TASKS} tasks are no sample. All these "
    "numbers are of the rates that were chosen, whose choice has noise of its own. They generalise "
    "over seeds (other orders and first weights, and other training examples where seeds draw "
    "them) and over the examples of the development sets. Seeds alone: the interval and the "
    "verdict of the same tests over new seeds on these very examples, which an earlier version "
    "had as its verdict; without that column, runs have no predictions, and all numbers are over "
    "seeds alone. With 10 seeds of a task, false claims can be 1.25 "
    "times as frequent as the level says, and less so with more."
)


def of_tasks(own: int, tasks: int) -> str:
    """What follows the name of a method whose mean is not over all tasks; nothing otherwise."""
    return f" ({own} of {tasks} tasks)" if own < tasks else ""


Columns = Mapping[str, Mapping[str, str]]
"""Further columns by their heads: the cell of each method, by its key."""


def gain_sheet(
    gains: Sequence[Gain],
    title: str,
    level: float,
    tasks: int,
    more: Columns = MappingProxyType({}),
) -> Table:
    """A row for each method, the largest gain first; methods that lack a task come last.

    Args:
      tasks: how many the study has.
      more: columns that follow.
    """
    ordered = sorted(gains, key=lambda e: (len(e.by_task) < tasks, -e.over_tasks.mean))
    alone = any(each.seeds_alone for each in gains)
    confidence = f"{100 * (1 - level):g}%"
    heads = (
        "method",
        "verdict",
        "mean gain",
        f"{confidence} interval",
        *[f"{confidence} interval, seeds alone", "verdict, seeds alone"] * alone,
        "p (Holm)",
        "p of equivalence",
        f"{confidence} upper bound",
        "detectable",
        *["such tasks"] * (tasks >= FEWEST_TASKS),
        "seeds",
        *more,
    )
    rows = [
        [*_row(each, tasks, alone), *(own.get(each.key, NONE) for own in more.values())]
        for each in ordered
    ]
    return Table(heads, rows, title)


def pair_sheet(pairs: Sequence[Gains], title: str, level: float, tasks: int) -> Table:
    """The same for pairs of methods: a row for what the first gains over the second.

    Args:
      pairs: the gains over each method of those after it.
    """
    named = [
        dataclasses.replace(gain, label=f"{gain.label} over {each.reference}")
        for each in pairs
        for gain in each.methods
    ]
    sheet = gain_sheet(named, title, level, tasks)
    return dataclasses.replace(sheet, heads=("pair", *sheet.heads[1:]))


def _row(gain: Gain, tasks: int, alone: bool) -> list[str]:
    whole, seeds = gain.over_tasks, gain.seeds_alone
    return [
        gain.label + of_tasks(len(gain.by_task), tasks),
        gain.verdict,
        _signed(whole.mean),
        _interval(whole),
        *([_interval(seeds.over_tasks), seeds.verdict] if seeds else [NONE, NONE] * alone),
        p_text(gain.adjusted),
        p_text(gain.equivalent),
        _signed(gain.upper),
        NONE if gain.detectable is None else f"{gain.detectable:.{DECIMALS}f}",
        *[NONE if gain.new_task is None else estimate_text(gain.new_task)]
        * (tasks >= FEWEST_TASKS),
        str(whole.n),
    ]


def _signed(value: float | None) -> str:
    return NONE if value is None else f"{value:+z.{DECIMALS}f}"


def _interval(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return NONE
    return f"[{_signed(found.low)}, {_signed(found.high)}]"


def evidence_sheet(found: Sequence[Evidence], margin: float, unit: str) -> Table:
    """What each task can show: a row for each task, with the scores that need no adaptation."""
    names = list(dict.fromkeys(each.name for task in found for each in task.floors))
    best = f"gain of {found[0].reference} over the best of these, {unit}"
    heads = ("task", *names, found[0].reference, best, "margin", "what it can show")
    rows = []
    for task in found:
        scores = {each.name: f"{each.score:.1f}" for each in task.floors}
        gain = NONE if task.best is None else estimate_text(task.best.gain)
        rows.append(
            [
                task.title,
                *(scores.get(name, NONE) for name in names),
                f"{task.score:.1f}",
                gain,
                f"{margin:g}",
                task.shows,
            ]
        )
    return Table(heads, rows, "What each task can show")


def estimate_text(found: Estimate) -> str:
    """A mean and its interval: `-0.33 [-0.58, -0.08]`."""
    return f"{_signed(found.mean)} {_interval(found)}"
