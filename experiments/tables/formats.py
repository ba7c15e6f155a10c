"""Write a table as text: for the console, and in Markdown, LaTeX, CSV and HTML."""

import csv
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.tables import cells, text_formats
from experiments.tables.cells import NONE, Block
from experiments.tables.text_formats import Sheet


def grid(block: Block, decimals: int) -> tuple[str, list[str], list[list[str]]]:
    """A block as text: its title, its headings and its rows.

    If a block has our numbers and published ones, a cell is `ours / published`.
    """
    ours, paper = block.ours, block.published
    kind = "ours / published" if ours and paper else "ours" if ours else "published only"
    heads = ["method", "trained parameters", *(column.heading for column in block.columns)]
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
    return f"{block.title} ({kind})", heads, rows


def _both(ours: str, published: str, has_ours: bool, has_published: bool) -> str:
    if has_ours and has_published:
        return NONE if ours == published == NONE else f"{ours} / {published}"
    return ours if has_ours else published


def rich(blocks: Sequence[Block], title: str, notes: Sequence[str], decimals: int) -> str:
    return text_formats.rich(_sheets(blocks, title, decimals), notes)


def markdown(blocks: Sequence[Block], title: str, notes: Sequence[str], decimals: int) -> str:
    return text_formats.markdown(_sheets(blocks, title, decimals), notes)


def latex(blocks: Sequence[Block], title: str, notes: Sequence[str], decimals: int) -> str:
    return text_formats.latex(_sheets(blocks, title, decimals), notes)


def _sheets(blocks: Sequence[Block], title: str, decimals: int) -> list[Sheet]:
    made = []
    for block in blocks:
        name, heads, rows = grid(block, decimals)
        made.append(Sheet(f"{title}, {name}", heads, rows))
    return made


def page(blocks: Sequence[Block], title: str, notes: Sequence[str], decimals: int) -> str:
    """The tables as a complete HTML page without other files."""
    style = "body{font-family:sans-serif}table{border-collapse:collapse;margin:1em 0}"
    style += "caption{text-align:left;font-weight:bold}th,td{padding:.3em .8em;text-align:left}"
    style += "thead,table{border-bottom:1px solid}thead{border-top:1px solid}"
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{style}</style>'
    lines = ["<!DOCTYPE html>", f'<html lang="en"><head>{head}</head><body>']
    lines.append(f"<h1>{html.escape(title)}</h1>")
    for block in blocks:
        name, heads, rows = grid(block, decimals)
        lines += [f"<table><caption>{html.escape(name)}</caption>", "<thead><tr>"]
        lines += [f'<th scope="col">{html.escape(text)}</th>' for text in heads]
        lines.append("</tr></thead><tbody>")
        for first, *rest in rows:
            data = "".join(f"<td>{html.escape(text)}</td>" for text in rest)
            lines.append(f'<tr><th scope="row">{html.escape(first)}</th>{data}</tr>')
        lines.append("</tbody></table>")
    lines += [f"<p>{html.escape(note)}</p>" for note in notes]
    return "\n".join([*lines, "</body></html>"]) + "\n"


def comma_separated(
    blocks: Sequence[Block], title: str, notes: Sequence[str], decimals: int
) -> str:
    """The tables as CSV for other programs: a line for each cell, with unrounded numbers."""
    heads = ["table", "model", "row", "method", "parameters", "published_parameters", "task"]
    heads += ["metric", "ours", "spread", "n", "failed", "published", "published_sd"]
    heads += ["published_seeds", "state"]
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, lineterminator="\n")
    writer.writeheader()
    for block in blocks:
        for row in block.rows:
            for column, cell in zip(block.columns, row.cells, strict=True):
                ours, paper = cell.ours, cell.published
                values: Mapping[str, Any] = {
                    "table": title,
                    "model": block.model,
                    "row": row.key,
                    "method": row.label,
                    "parameters": " ".join(map(str, row.parameters)),
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
                writer.writerow(values)
    return text.getvalue()


FORMATS: dict[str, Callable[[Sequence[Block], str, Sequence[str], int], str]] = {
    "rich": rich,
    "markdown": markdown,
    "latex": latex,
    "csv": comma_separated,
    "html": page,
}
