"""Write a table as text: for the console, and in Markdown, LaTeX, CSV and HTML."""

import dataclasses
import html
from collections.abc import Mapping, Sequence

from experiments.analysis import parameters
from experiments.tables import cells
from lora_jax.table import NONE, Cell, Table, render_tables

FORMATS = ("rich", "markdown", "latex", "csv", "html")
STYLE = (
    "body{font-family:sans-serif}table{border-collapse:collapse;margin:1em 0}"
    "th,td{padding:.3em .8em;text-align:left}.number{text-align:right}.scroll{overflow-x:auto}"
    "thead,table{border-bottom:1px solid}thead{border-top:1px solid}"
)
END = "</body></html>\n"


def table_of(block: cells.Block, decimals: int) -> Table:
    """A block as text.

    If a block has our numbers and published ones, a cell is `ours / published`.
    """
    ours, paper = block.ours, block.published
    kind = "ours / published" if ours and paper else "ours" if ours else "published only"
    heads = ["method", parameters.HEADING, *(column.heading for column in block.columns)]
    rows = []
    for row in block.rows:
        own, printed = cells.parameters_text(row)
        texts = [_both(own, printed, ours, paper)]
        for column, cell in zip(block.columns, row.cells, strict=True):
            texts.append(
                _both(
                    cells.ours_text(cell, column.metric, decimals),
                    cells.published_text(cell, column.metric, decimals),
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
    form: str, blocks: Sequence[cells.Block], title: str, notes: Sequence[str], decimals: int
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


def comma_separated(blocks: Sequence[cells.Block], title: str) -> str:
    """The tables as CSV for other programs: a line for each cell, with unrounded numbers."""
    lines: list[Mapping[str, Cell]] = []
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
                    "state": cells.state(cell),
                }
                lines.append(values)
    return Table.of_records(CSV, lines).to_csv()
