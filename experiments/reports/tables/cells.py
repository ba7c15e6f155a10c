"""A table of runs: a block for each model, a row for each method, cells with our and their number.

`blocks` makes it of runs and published numbers, and `write` writes it in any of `FORMATS`.
"""

import dataclasses
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.analysis import collect_runs, parameters
from experiments.analysis.collect_runs import Summary, statuses, summarise
from experiments.analysis.labels import heading, in_order, method, natural
from experiments.analysis.published import MODEL_TITLES, PERCENT, POINTS, Published
from experiments.analysis.recorded_runs import Run
from lora_jax.table import NONE, Table, render_tables

DECIMALS = 2
"""Of scores in reports."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column: its heading, and the task and metric of its scores."""

    heading: str
    task: str
    metric: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """Our number and the paper's for one model, one method and one metric."""

    ours: Summary | None = None
    published: Published | None = None
    failures: Mapping[str, int] = dataclasses.field(default_factory=dict)
    runnable: bool = True


@dataclasses.dataclass(frozen=True)
class Row:
    key: str
    label: str
    parameters: tuple[int, ...]
    """The numbers of parameters of our runs (`experiments.analysis.parameters`)."""
    published_parameters: int | None
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True)
class Block:
    """The part of a table about one model."""

    model: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        return MODEL_TITLES.get(self.model, self.model)

    @property
    def ours(self) -> bool:
        """Whether the block has a cell that the project can run, or has run."""
        return any(cell.runnable or cell.ours for row in self.rows for cell in row.cells)

    @property
    def published(self) -> bool:
        return any(cell.published for row in self.rows for cell in row.cells)


def blocks(
    table: Mapping[str, Any], runs: Sequence[Run], published: Iterable[Published]
) -> list[Block]:
    """The blocks of a table: first the paper's models, then the table's own, then those of runs.

    A published number is in the block of its own model. It shares a cell with ours only if model,
    row, task and metric are the same.
    """
    cells = [cell for cell in published if (cell.paper, cell.table) == table["published"]]
    models = dict.fromkeys(
        [*(cell.model for cell in cells), *table["models"], *(run.place[0] for run in runs)]
    )
    return [
        _block(
            model,
            table,
            [run for run in runs if run.place[0] == model],
            [cell for cell in cells if cell.model == model],
        )
        for model in models
    ]


def _block(
    model: str, table: Mapping[str, Any], runs: Sequence[Run], published: Sequence[Published]
) -> Block:
    fillable = bool(runs or model in table["models"]) or any(cell.runnable for cell in published)
    columns = _columns(table, runs) if fillable else []
    average = [Column("average", "average", "mean")] if table["average"] and fillable else []
    known = {(column.task, column.metric) for column in (*columns, *average)}
    named = [*table["columns"], *table["printed"]]
    named += [("average", "average", "mean")] * table["average"]
    headings = {(task, metric): text for text, task, metric in named}
    for task, metric in dict.fromkeys((cell.task, cell.metric) for cell in published):
        if (task, metric) not in known:  # in the paper, but not among our columns
            text = headings.get((task, metric), f"{heading(task)} ({metric})".replace("_", " "))
            columns.append(Column(text, task, metric))
    columns += average
    present = in_order(run.place[1] for run in runs)
    if published or table["columns"] or table["unrun"]:  # a table with fixed rows
        keys = [cell.row for cell in published] + fillable * list(table["rows"]) + present
    else:  # a study with a row for each method that was run
        keys = [key for key in table["rows"] if key in present] + present
    rows = [
        _row(
            key,
            columns,
            table,
            [run for run in runs if run.place[1] == key],
            [cell for cell in published if cell.row == key],
        )
        for key in dict.fromkeys(keys)
    ]
    last = [Column(text, "", "") for text, _, _ in table["differences"] if fillable]
    return Block(model, (*columns, *last), tuple(rows))


def _columns(table: Mapping[str, Any], runs: Sequence[Run]) -> list[Column]:
    """The table's columns; if it names none, a column for each task of the runs, by main metric.

    Raises:
      ValueError: completed runs of one column have different main metrics.
    """
    if fixed := table["columns"] or (not runs and table["unrun"]):
        return [Column(*each) for each in fixed]
    metrics: dict[str, str] = {}
    for run in sorted(runs, key=lambda run: not run.completed):
        name = run.place[2]
        if metrics.setdefault(name, run.record.metric) != run.record.metric and run.completed:
            raise ValueError(f"{run.folder}: other runs of {name} have the metric {metrics[name]}")
    return [Column(heading(name), name, metrics[name]) for name in natural(metrics)]


def _row(
    key: str,
    columns: Sequence[Column],
    table: Mapping[str, Any],
    runs: Sequence[Run],
    published: Sequence[Published],
) -> Row:
    printed = {(cell.task, cell.metric): cell for cell in published}
    runnable = bool(runs) or not published or any(cell.runnable for cell in published)
    cells = []
    for column in columns:
        own = [run for run in runs if run.place[2] == column.task]
        done = [run for run in own if run.completed]
        found = _scores(done, column.metric, table)
        ours = _summary(found, table)
        failed = statuses(own)
        paper = printed.get((column.task, column.metric))
        wanted = {(task, metric) for _, task, metric in table["columns"]}
        asked = (column.task, column.metric) in wanted or not wanted
        if not asked:  # no run is expected here, so none can be missing
            failed = {}
        elif len(found) < len(done):
            failed["not measured"] = len(done) - len(found)
        cells.append(Cell(ours, paper, failed, runnable and asked))
    if columns and columns[-1].task == "average":
        cells[-1] = dataclasses.replace(cells[-1], ours=average(columns, cells), runnable=runnable)
    for _, plus, minus in table["differences"]:
        cells.append(Cell(_difference(runs, plus, minus, table)))
    label = published[0].method if published else table["rows"].get(key) or method(key)
    return Row(
        key,
        label,
        parameters.counts(run.record for run in runs),
        published[0].trained_parameters if published else None,
        tuple(cells),
    )


def average(columns: Sequence[Column], cells: Sequence[Cell]) -> Summary | None:
    """The mean over tasks of the mean of a task's columns; None if a runnable one has no score."""
    tasks: dict[str, list[float]] = {}
    for column, cell in zip(columns, cells, strict=True):
        if column.task != "average" and cell.runnable:
            if cell.ours is None:
                return None
            tasks.setdefault(column.task, []).append(cell.ours.centre)
    if not tasks:
        return None
    return Summary(sum(sum(v) / len(v) for v in tasks.values()) / len(tasks), None, 0)


def _difference(
    runs: Sequence[Run],
    plus: tuple[str, str],
    minus: tuple[str, str],
    table: Mapping[str, Any],
) -> Summary | None:
    """One metric minus another, over runs with the same seed and draw; None if there are none."""
    first, second = (
        _scores([run for run in runs if run.completed and run.place[2] == column], metric, table)
        for column, metric in (plus, minus)
    )
    both = {number: first[number] - second[number] for number in first if number in second}
    return _summary(both, table)


def _scores(
    runs: Iterable[Run], metric: str, table: Mapping[str, Any]
) -> dict[collect_runs.RunNumber, float]:
    """The scores of completed runs that have one, by seed and draw."""
    scores = {run.number: run.score(metric, table["choose"]) for run in runs}
    return {number: score for number, score in scores.items() if score is not None}


def _summary(
    scores: Mapping[collect_runs.RunNumber, float], table: Mapping[str, Any]
) -> Summary | None:
    """The table's summary of a cell; None without scores."""
    counted = collect_runs.means_of_draws(scores).tolist()
    return summarise(counted, table["report"], table["spread"]) if counted else None


def score_text(value: float, metric: str, decimals: int) -> str:
    """A score as tables print it; a difference (empty `metric`) has a sign."""
    if not metric:
        return f"{value:+.{decimals}f}"
    return f"{value:.5g}" if is_raw(metric) else f"{value:.{decimals}f}"


def spread_text(value: float, metric: str, decimals: int) -> str:
    """A spread of scores as tables print it, with as many digits as its scores can show."""
    return f"{value:.2g}" if is_raw(metric) else f"{value:.{decimals}f}"


def is_raw(metric: str) -> bool:
    """Whether a score is in no points, such as a loss: a few digits matter, wherever they are."""
    return bool(metric) and metric.removesuffix("_extra") not in PERCENT and metric not in POINTS


def ours_text(cell: Cell, metric: str, decimals: int) -> str:
    """Our number as text, such as `87.4 ± 0.3 (5)`, or `not run`.

    The parentheses hold the number of runs, and how many more did not complete.
    """
    failed = ", ".join(f"{count} {status}" for status, count in cell.failures.items())
    if cell.ours is None:
        return failed or ("not run" if cell.runnable else NONE)
    text = score_text(cell.ours.centre, metric, decimals)
    if cell.ours.spread is not None:
        text += f" ± {spread_text(cell.ours.spread, metric, decimals)}"
    inside = ", ".join(filter(None, [str(cell.ours.n or ""), failed]))
    return f"{text} ({inside})" if inside else text


def state(cell: Cell) -> str:
    """What a cell contains, in a word or two; empty if it can contain nothing."""
    if cell.ours is not None:
        return "run"
    if cell.failures:
        return ", ".join(cell.failures)
    if cell.runnable:
        return "not run"
    return "published only" if cell.published else ""


def published_text(cell: Cell, metric: str, decimals: int) -> str:
    if cell.published is None:
        return NONE
    sd = cell.published.sd
    spread = "" if sd is None else f" ± {sd:.{decimals}f}"
    return score_text(cell.published.value, metric, decimals) + spread


def parameters_text(row: Row) -> tuple[str, str]:
    """Our number of parameters, and the paper's, which is rounded there, as text."""
    ours, paper = parameters.text(row.parameters), row.published_parameters
    return ours or NONE, NONE if paper is None else f"{paper / 1e6:g}M"


FORMATS = ("rich", "markdown", "latex", "csv", "html")
STYLE = (
    "body{font-family:sans-serif}table{border-collapse:collapse;margin:1em 0}"
    "th,td{padding:.3em .8em;text-align:left}.number{text-align:right}.scroll{overflow-x:auto}"
    "thead,table{border-bottom:1px solid}thead{border-top:1px solid}"
)
END = "</body></html>\n"


def table_of(block: Block, decimals: int) -> Table:
    """A block as text.

    If a block has our numbers and published ones, a cell is `ours / published`.
    """
    ours, paper = block.ours, block.published
    kind = "ours / published" if ours and paper else "ours" if ours else "published only"
    heads = ["method", parameters.HEADING, *(column.heading for column in block.columns)]
    rows = []
    for row in block.rows:
        own, printed = parameters_text(row)
        texts = [_both(own, printed, ours, paper)]
        for column, cell in zip(block.columns, row.cells, strict=True):
            texts.append(
                _both(
                    ours_text(cell, column.metric, decimals),
                    published_text(cell, column.metric, decimals),
                    ours,
                    paper and bool(column.metric),
                )
            )
        only = ours and paper and not any(cell.runnable or cell.ours for cell in row.cells)
        rows.append([f"{row.label} (published only)" if only else row.label, *texts])
    return Table(heads, rows, f"{block.title} ({kind})")


def _both(ours: str, published: str, has_ours: bool, has_published: bool) -> str:
    if has_ours and has_published:
        return NONE if ours == published == NONE else f"{ours} / {published}"
    return ours if has_ours else published


def write(
    form: str, blocks: Sequence[Block], title: str, notes: Sequence[str], decimals: int
) -> str:
    """The tables as text in one of `FORMATS`."""
    if form == "csv":
        return comma_separated(blocks, title)
    made = [table_of(block, decimals) for block in blocks]
    if form == "html":
        return page(made, title, notes)
    titled = [dataclasses.replace(each, title=f"{title}, {each.title}") for each in made]
    return render_tables(form, titled, notes)


def page(made: Sequence[Table], title: str, notes: Sequence[str]) -> str:
    """The tables as a complete HTML page without other files."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    lines = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head>{head}</head><body>',
        f"<h1>{html.escape(title)}</h1>",
    ]
    lines += [each.to_html() for each in made]
    return "\n".join([*lines, *(f"<p>{html.escape(note)}</p>" for note in notes), END])


CSV = (
    "table",
    "model",
    "row",
    "method",
    "parameters_least",
    "parameters_most",
    "published_parameters",
    "task",
    "metric",
    "ours",
    "spread",
    "n",
    "failed",
    "published",
    "published_sd",
    "published_seeds",
    "state",
)
"""The columns of a table as CSV."""


def comma_separated(blocks: Sequence[Block], title: str) -> str:
    """The tables as CSV for other programs: a line for each cell, with unrounded numbers."""
    lines: list[Mapping[str, Any]] = []
    for block in blocks:
        for row in block.rows:
            for column, cell in zip(block.columns, row.cells, strict=True):
                ours, paper = cell.ours, cell.published
                values = {
                    "table": title,
                    "model": block.model,
                    "row": row.key,
                    "method": row.label,
                    "parameters_least": min(row.parameters, default=None),
                    "parameters_most": max(row.parameters, default=None),
                    "published_parameters": row.published_parameters,
                    "task": column.task or column.heading,
                    "metric": column.metric or "difference",
                    "ours": ours and ours.centre,
                    "spread": ours and ours.spread,
                    "n": ours.n if ours else 0,
                    "failed": sum(cell.failures.values()),
                    "published": paper and paper.value,
                    "published_sd": paper and paper.sd,
                    "published_seeds": paper and paper.seeds,
                    "state": state(cell),
                }
                lines.append(values)
    return Table.of_records(CSV, lines).to_csv()
