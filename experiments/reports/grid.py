"""The grid that a report begins with: a row for each setting, as a table, as lines and a sentence.

`experiments.analysis.setting_grid` says what is in it, and `figures.setting_lines` draws it.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.analysis import collect_runs
from experiments.analysis.choose_methods import RATE
from experiments.analysis.recorded_runs import named, sign
from experiments.analysis.setting_grid import Grid, Row, described
from experiments.reports.sheets import interval_of
from experiments.reports.tables.cells import DECIMALS, page, score_text, spread_text
from lora_jax.messages import agree, count, joined
from lora_jax.table import NONE, Cell, Number, Table, render_tables

NOTE = (
    "A row is one setting: mean ± standard deviation over its n seeds, or over the draws of the "
    "training examples that seeds share. A run that diverged counts with its last score; without "
    "one, its setting has no number. A setting that diverged is never the best one."
)
NO_INTERVAL = (
    f"The interval over seeds is given for {collect_runs.FEWEST_SCORES} seeds or more: that of two "
    "reaches nine standard deviations to each side."
)


def sheet(grid: Grid) -> Table:
    """A row for each setting; columns that would say nothing are left out."""
    metric = grid.contest.metric
    ends = [interval_of(row.scores) for row in grid.rows]
    lost = [lost_text(row) for row in grid.rows]
    heads = ["method", *grid.keys.values(), "mean ± sd", "n"]
    heads += [*["95% interval"] * any(ends), "best", *["not completed"] * any(lost)]
    rows = []
    for row, pair, gone in zip(grid.rows, ends, lost, strict=True):
        cells: list[Cell] = [row.method.label, *map(_cell, row.values.values())]
        cells += [_score(row, metric), len(row.scores)]
        if any(ends):
            texts = [score_text(end, metric, DECIMALS) for end in pair or ()]
            cells.append(f"[{', '.join(texts)}]" if pair else NONE)
        cells.append({"all": "best", "": ""}.get(row.best, f"best of {row.best}"))
        rows.append([*cells, *[gone] * any(lost)])
    held = any(row.method.phase == "held_out" for row in grid.rows)
    where = "held-out training examples" if held else "development set"
    title = f"{grid.contest.title}: all settings, {named(metric)} on the {where}"
    return Table(heads, rows, title)


def _cell(value: Any) -> Cell:
    if value is None:
        return NONE
    return Number(value, "g") if isinstance(value, float) else value


def _score(row: Row, metric: str) -> str:
    if row.mean is None:
        return "no number" if "diverged" in row.lost else "not run"
    spread = "" if row.sd is None else f" ± {spread_text(row.sd, metric, DECIMALS)}"
    return score_text(row.mean, metric, DECIMALS) + spread


def lost_text(row: Row) -> str:
    """The runs that did not complete: `seed 1 diverged; seeds 2 and 3 missing`."""
    drawn = len({draw for own in row.lost.values() for _, draw in own}) > 1

    def names(own: Sequence[collect_runs.RunNumber]) -> str:
        each = [f"{seed} of draw {draw}" if drawn else str(seed) for seed, draw in sorted(own)]
        return f"{agree(len(each), 'seed', 'seeds')} {joined(each)}"

    return "; ".join(f"{names(own)} {status}" for status, own in row.lost.items())


def sentence(grid: Grid, size: str = "full") -> str:
    """Which setting is the best one of all, with its score; empty if there is none.

    Args:
      size: that of the runs, which is said of all but full ones.
    """
    if not (best := grid.best) or (row := best[0]).mean is None:
        return ""
    score = _score(row, grid.contest.metric)
    metric = grid.contest.metric
    lower = "; lower is better" * (sign(metric) < 0)
    where = f"{metric.replace('_', ' ')} {score}, {count(len(row.scores), 'seed')}{lower}"
    begin = f"{size} runs: " * (size != "full")
    begin += f"Best of {count(len(grid.rows), 'setting')} on {grid.contest.task_title}"
    others = f", and {count(len(best) - 1, 'other')} with the same mean" * (len(best) > 1)
    return f"{begin}: {described(row, grid.keys)} ({where}){others}."


def notes(grids: Sequence[Grid]) -> list[str]:
    """What the numbers of these grids are; nothing without a grid."""
    counts = [len(row.scores) for grid in grids for row in grid.rows]
    return [NOTE, *[NO_INTERVAL] * (min(counts) < collect_runs.FEWEST_SCORES)] if counts else []


RECORDED = ("diverged", "failed", "stopped", "missing")


def records(grid: Grid) -> Iterator[dict[str, Any]]:
    """The rows as values for CSV, with a column for each key that differs."""
    contest = grid.contest
    for row in grid.rows:
        ends, lost = interval_of(row.scores), {each: len(own) for each, own in row.lost.items()}
        yield {
            "table": contest.table,
            "model": contest.model,
            "task": contest.task,
            "metric": contest.metric,
            "scored_on": "held-out" if row.method.phase == "held_out" else "development",
            "method": row.method.key,
            "label": row.method.label,
            "learning_rate": row.setting.rate,
            **{key: value for key, value in row.values.items() if key != RATE},
            "n": len(row.scores),
            "mean": row.mean,
            "sd": row.sd,
            "low": ends and ends[0],
            "high": ends and ends[1],
            "best": row.best,
            **{each: lost.pop(each, 0) for each in RECORDED},
            "unfinished": sum(lost.values()),
            "note": lost_text(row),
        }


def render(
    form: str,
    grids: Sequence[Grid],
    more: Sequence[str] = (),
    size: str = "full",
    title: str = "All settings",
) -> str:
    """The grids alone, with further notes, in one of `experiments.reports.tables.cells.FORMATS`.

    Args:
      title: that of the HTML page.
    """
    if form == "csv":
        rows = [row for grid in grids for row in records(grid)]
        heads = dict.fromkeys(head for row in rows for head in row)
        return Table.of_records(list(heads), rows).to_csv()
    small = f"{size} runs: " * (size != "full")
    sheets = [sheet(grid) for grid in grids]
    made = [dataclasses.replace(each, title=small + each.title) for each in sheets]
    first = [said for each in grids if (said := sentence(each, size))]
    if form == "html":
        return page(made, title, [*first, *notes(grids), *more])
    return render_tables(form, made, [*notes(grids), *more], first)
