"""Write a report as CSV for other programs: a line for each setting, method and test of two."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.analysis import collect_runs
from experiments.analysis.choose_methods import Contest, Method
from experiments.analysis.gains import Gain
from experiments.analysis.pairwise import KINDS, Pair, adjusted, verdicts
from experiments.analysis.rate_choice import Choice
from experiments.analysis.setting_grid import Grid
from experiments.reports import grid, sheets
from experiments.reports.findings import Findings
from experiments.reports.sheets import of_tasks
from lora_jax.table import Table

COLUMNS = (
    "line",
    "table",
    "model",
    "task",
    "size",
    "metric",
    "scored_on",
    "method",
    "label",
    "settings_tried",
    "runs_tried",
    "steps_tried",
    "chosen",
    "learning_rate",
    "edge",
    "chosen_on",
    "lead",
    "chosen_in",
    "n",
    "mean",
    "sd",
    "low",
    "high",
    "diverged",
    "failed",
    "stopped",
    "unfinished",
    "missing",
    "best",
    "parameters_least",
    "parameters_most",
    "seconds",
    "machine",
    "peak_memory_bytes",
    "other",
    "common",
    "test",
    "generalises_to",
    "difference",
    "p",
    "decides",
    "p_holm",
    "p_equivalent",
    "upper",
    "detectable",
    "such_tasks",
    "such_tasks_low",
    "such_tasks_high",
    "between_tasks",
    "margin",
    "verdict",
    "seeds_low",
    "seeds_high",
    "seeds_p_holm",
    "seeds_p_equivalent",
    "seeds_verdict",
    "note",
)
"""The columns.

`line` is `setting`, `method`, `test`, or for registered studies `gain`, `pair` where all pairs of
methods are compared over all tasks, and `floor` for what needs no adaptation (`other`), which the
reference must beat: its `note` says what the task can show. Columns that a line does not use are
empty. `low` and `high` are the ends of the 95% interval of the mean, or of the difference `method`
minus `other`. The mean counts runs that diverged with their last scores, and its `note` says so.
The test that `decides` has the verdict, and Holm's p value in the family of all deciding tests;
where a registered study has the verdicts, it has none.

A `setting` has further columns behind these, named by the keys of the config that differ, such as
`variant.rank`. Its `best` is `all`, or the label of the method that it is the best setting of, and
`missing` is the number of runs that other settings have.

`lead` is that of the chosen setting over the next best of those tried, and `chosen_in` the share of
resamples that choose the same (`rate_choice`).

The task of a method's mean gain is `all tasks`, or `3 of 5 tasks` if it lacks some. That gain has
`p_holm` in another family, that of all methods against the reference; so has `p_equivalent`, of two
one-sided tests against the `margin`. In a `pair`, they are of the family of all pairs, and in a
`gain`, too, if the study registered that. `upper` is the one-sided upper bound, and `detectable`
the smallest difference that the test would find with a power of 80%. `such_tasks` is the mean over
all tasks of which these are a sample (`significance.new_task`), with its interval, and
`between_tasks` the standard deviation of gains between them, without the noise of seeds and
examples. All intervals and bounds of gains are at the level of the study's protocol. They are over
new seeds and new examples; `seeds_low` to `seeds_verdict` are over new seeds alone. They are empty
where runs have no predictions, as all numbers are over seeds alone then.
"""


def lines(
    made: Sequence[Contest],
    family: Sequence[Pair],
    apart: Sequence[Pair] = (),
    studies: Sequence[Findings] = (),
    size: str = "full",
    choices: Sequence[Mapping[str, Choice]] = (),
    grids: Sequence[Grid] = (),
) -> str:
    """The whole CSV text.

    Args:
      family: all pairs that get a verdict.
      apart: pairs that get none.
      studies: what registered studies found over all their tasks.
      size: that of the runs.
      choices: how the settings of each contest were chosen (`rate_choice.of_contest`).
      grids: those of the contests, which come first.
    """
    found = [{"line": "setting", **each} for own in grids for each in grid.records(own)]
    keys = dict.fromkeys(head for each in found for head in each if head not in COLUMNS)
    found += [
        _method_line(contest, method, known.get(method.key, Choice()))
        for contest, known in zip(made, choices or [{}] * len(made), strict=True)
        for method in contest.methods
    ]
    for pair, holm, verdict in zip(family, adjusted(family), verdicts(family), strict=True):
        found += _test_lines(pair, holm, verdict)
    for pair in apart:
        found += _test_lines(pair, None, "")
    found += [line for each in studies for line in _gain_lines(each)]
    found += [line for each in studies for line in _floor_lines(each)]
    heads = (*COLUMNS, *keys)
    return Table.of_records(heads, ({**each, "size": size} for each in found)).to_csv()


def _gain_lines(found: Findings) -> Iterator[dict[str, Any]]:
    """A line for each method, or pair, over all tasks, and one for each of its tasks."""
    over = [("gain", found.reference_key, each.gain) for each in found.methods if each.gain]
    over += [("pair", each.reference_key, gain) for each in found.pairs for gain in each.methods]
    for line, other, gain in over:
        some = of_tasks(len(gain.by_task), found.planned_tasks).strip(" ()")
        for task, own in ((some or "all tasks", gain.over_tasks), *gain.by_task.items()):
            yield {
                "line": line,
                "table": found.title,
                "model": found.model,
                "task": task,
                "metric": found.metrics.get(task, ""),
                "scored_on": "development",
                "method": gain.key,
                "label": gain.label,
                "other": other,
                "n": own.n,
                "difference": own.mean,
                "low": own.low,
                "high": own.high,
                "p": own.p,
                **(_whole(gain, found.margin) if own is gain.over_tasks else {}),
            }


def _floor_lines(found: Findings) -> Iterator[dict[str, Any]]:
    """A line for each score without adaptation that the reference of a study must beat."""
    for task in found.evidence:
        for floor in task.floors:
            yield {
                "line": "floor",
                "table": found.title,
                "model": found.model,
                "task": task.task,
                "metric": found.metrics.get(task.task, ""),
                "scored_on": "development",
                "method": found.reference_key,
                "label": task.reference,
                "other": floor.name,
                "n": floor.gain.n,
                "difference": floor.gain.mean,
                "low": floor.gain.low,
                "high": floor.gain.high,
                "p": floor.gain.p,
                "margin": found.margin,
                "note": task.shows,
            }


def _whole(gain: Gain, margin: float | None) -> dict[str, Any]:
    """What a method has over all tasks alone."""
    such, seeds = gain.new_task, gain.seeds_alone
    return {
        "p_holm": gain.adjusted,
        "p_equivalent": gain.equivalent,
        "upper": gain.upper,
        "detectable": gain.detectable,
        "such_tasks": such and such.mean,
        "such_tasks_low": such and such.low,
        "such_tasks_high": such and such.high,
        "between_tasks": gain.between_tasks,
        "margin": margin,
        "verdict": gain.verdict,
        "seeds_low": seeds and seeds.over_tasks.low,
        "seeds_high": seeds and seeds.over_tasks.high,
        "seeds_p_holm": seeds and seeds.adjusted,
        "seeds_p_equivalent": seeds and seeds.equivalent,
        "seeds_verdict": seeds and seeds.verdict,
    }


def _identity(contest: Contest, method: Method) -> dict[str, Any]:
    return {
        "table": contest.table,
        "model": contest.model,
        "task": contest.task,
        "metric": contest.metric,
        "scored_on": "held-out" if contest.held_out else "development",
        "method": method.key,
        "label": method.label,
    }


def _method_line(contest: Contest, method: Method, choice: Choice) -> dict[str, Any]:
    scores = method.counted()
    spent, ends = sheets.costs(method), sheets.interval(method)
    ended = collect_runs.statuses(run for each in method.settings for run in each.runs)
    settings, runs = method.budget
    machines = sheets.machines(contest)
    counted = spent.parameters if spent else ()
    return {
        "line": "method",
        **_identity(contest, method),
        "settings_tried": settings,
        "runs_tried": runs,
        "steps_tried": method.steps,
        "chosen": method.chosen and method.describe(method.chosen),
        "learning_rate": method.chosen and method.chosen.rate,
        "edge": method.edge,
        "chosen_on": method.chosen_on,
        "lead": choice.lead,
        "chosen_in": choice.chosen_in,
        "n": len(scores),
        "mean": statistics.fmean(scores) if scores else None,
        "sd": statistics.stdev(scores) if len(scores) > 1 else None,
        "low": ends and ends[0],
        "high": ends and ends[1],
        "diverged": ended.get("diverged", 0),
        "failed": ended.get("failed", 0),
        "stopped": ended.get("stopped", 0),
        "unfinished": sum(len(each.unfinished) for each in method.settings),
        "parameters_least": min(counted, default=None),
        "parameters_most": max(counted, default=None),
        "seconds": spent and spent.seconds,
        "machine": "; ".join(w for w, who in machines.items() if method.label in who),
        "peak_memory_bytes": spent and spent.memory,
        "note": sheets.of_diverged(method),
    }


def _test_lines(pair: Pair, holm: float | None, verdict: str) -> Iterator[dict[str, Any]]:
    """A line for each kind of test, measured or not."""
    for kind in KINDS:
        test = pair.tests[kind]
        decides = kind == pair.decided_by
        yield {
            "line": "test",
            **_identity(pair.contest, pair.first),
            "other": pair.second.key,
            "common": pair.common,
            "test": kind,
            "generalises_to": pair.generalises_to(kind),
            "n": test and test.n,
            "difference": test and test.mean,
            "low": test and test.low,
            "high": test and test.high,
            "p": test and test.p,
            "decides": "yes" if decides else "no",
            "p_holm": holm if decides else None,
            "verdict": verdict if decides else "",
            "note": pair.why if test is not None else f"not measured: {pair.why}",
        }
