"""A table as text: on the console, in Markdown, LaTeX, CSV and HTML."""

import csv
import html
import io
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import cells
from experiments.cells import NONE, Block

LABEL = 32
"""How wide a method's name may be on the console."""

LATEX = {c: f"\\{c}" for c in "&%$#_{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"±": r"$\pm$", NONE: "--", "<": r"\textless{}", ">": r"\textgreater{}"}


def grid(block: Block, decimals: int) -> tuple[str, list[str], list[list[str]]]:
    """A block as text: its title, its headings and its rows.

    Where a block has numbers of both kinds, a cell is `ours / published`.
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
    """For a console, as wide as it is: columns that do not fit follow below."""
    width = shutil.get_terminal_size((240, 24)).columns
    console = Console(file=io.StringIO(), width=width)
    for block in blocks:
        name, heads, rows = grid(block, decimals)
        console.print(Text(f"{title}, {name}", style="bold"))  # no markup: [r=8] is text
        columns = [
            (head, [text.replace(" / ", " /\n") for text in texts])
            for head, *texts in zip(heads, *rows, strict=True)
        ]
        for part in _parts(columns[1:], width - LABEL - 4):
            table = Table(box=box.SIMPLE_HEAD)
            table.add_column(Text(columns[0][0]), max_width=LABEL)
            for head, _ in part:
                table.add_column(Text(head), no_wrap=True)
            for row in zip(columns[0][1], *(texts for _, texts in part), strict=True):
                table.add_row(*map(Text, row))
            console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _parts(
    columns: Sequence[tuple[str, list[str]]], width: int
) -> list[list[tuple[str, list[str]]]]:
    """Columns in groups that fit a width, one at least."""
    parts, used = [[]], 0
    for head, texts in columns:
        need = 3 + max(len(line) for text in (head, *texts) for line in text.splitlines())
        if parts[-1] and used + need > width:
            parts.append([])
            used = 0
        parts[-1].append((head, texts))
        used += need
    return parts


def markdown(blocks: Sequence[Block], title: str, notes: Sequence[str], decimals: int) -> str:
    lines = []
    for block in blocks:
        name, heads, rows = grid(block, decimals)
        lines += [f"**{_markdown(f'{title}, {name}')}**", ""]
        for row in (heads, ["---"] * len(heads), *rows):
            lines.append("| " + " | ".join(map(_markdown, row)) + " |")
        lines.append("")
    lines += [f"{_markdown(note)}\n" for note in notes]
    return "\n".join(lines)


def _markdown(text: str) -> str:
    return re.sub(r"([|*_`<\\])", r"\\\1", text)


def latex(blocks: Sequence[Block], title: str, notes: Sequence[str], decimals: int) -> str:
    """A `tabular` a block, with booktabs' rules."""
    lines = ["% \\usepackage{booktabs}"]
    for block in blocks:
        name, heads, rows = grid(block, decimals)
        lines += [f"\\paragraph{{{_latex(f'{title}, {name}')}}}", ""]
        lines += [f"\\begin{{tabular}}{{ll{'r' * (len(heads) - 2)}}}", "\\toprule"]
        lines += [" & ".join(map(_latex, heads)) + " \\\\", "\\midrule"]
        lines += [" & ".join(map(_latex, row)) + " \\\\" for row in rows]
        lines += ["\\bottomrule", "\\end{tabular}", ""]
    return "\n".join(lines + [_latex(note) + "\n" for note in notes]) + "\n"


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def page(blocks: Sequence[Block], title: str, notes: Sequence[str], decimals: int) -> str:
    """A whole HTML page that needs nothing else."""
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
    """A line a cell, with numbers as they are: for other programs."""
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
