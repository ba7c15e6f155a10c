"""Write tables of text for the console, and in Markdown, LaTeX, HTML and CSV."""

import csv
import dataclasses
import html
import io
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.tables import numbers
from experiments.tables.cells import NONE

LABEL = 32
"""The largest width of the first column, the names, on the console."""

LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "±": r"$\pm$",
    "|": r"\textbar{}",
    "…": r"\dots{}",
    NONE: "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}

PACKAGES = "% \\usepackage{booktabs, graphicx}"
"""The packages that a document needs to include our LaTeX: table rules, and `\\resizebox`."""
FITTING = r"\ifdim\width>\linewidth\linewidth\else\width\fi"
"""The width of a box: its own, but at most the width of a line of text."""


@dataclasses.dataclass(frozen=True)
class Sheet:
    """One table: its title, its headings, and rows with a text for each heading, a name first."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def rich(sheets: Sequence[Sheet], notes: Sequence[str], first: Sequence[str] = ()) -> str:
    """The tables for a console of the current width; columns that do not fit follow below.

    Args:
      first: what is said before the tables.
    """
    width = shutil.get_terminal_size((240, 24)).columns
    console = Console(file=io.StringIO(), width=width)
    for each in first:
        console.print(f"{each}\n", markup=False, highlight=False)
    for sheet in sheets:
        console.print(Text(sheet.title, style="bold"))  # Text, as a string's [r=8] would be markup
        columns = [
            (head, [text.replace(" / ", " /\n") for text in texts])
            for head, *texts in zip(sheet.heads, *sheet.rows, strict=True)
        ]
        for part in _column_groups(columns[1:], width - LABEL - 4):
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


def _column_groups(
    columns: Sequence[tuple[str, list[str]]], width: int
) -> list[list[tuple[str, list[str]]]]:
    """Divide columns into groups that fit a width, each with at least one column."""
    parts, used = [[]], 0
    for head, texts in columns:
        need = 3 + max(len(line) for text in (head, *texts) for line in text.splitlines())
        if parts[-1] and used + need > width:
            parts.append([])
            used = 0
        parts[-1].append((head, texts))
        used += need
    return parts


def markdown(sheets: Sequence[Sheet], notes: Sequence[str], first: Sequence[str] = ()) -> str:
    """The tables in Markdown.

    Args:
      first: what is said before the tables.
    """
    lines = [f"{_markdown(each)}\n" for each in first]
    for sheet in sheets:
        rows = (sheet.heads, ["---"] * len(sheet.heads), *sheet.rows)
        drawn = ["| " + " | ".join(map(_markdown, row)) + " |" for row in rows]
        lines += [f"**{_markdown(sheet.title)}**", "", *drawn, ""]
    lines += [f"{_markdown(note)}\n" for note in notes]
    return "\n".join(lines)


def _markdown(text: str) -> str:
    return re.sub(r"([|*_`<\\])", r"\\\1", text)


def latex(sheets: Sequence[Sheet], notes: Sequence[str], first: Sequence[str] = ()) -> str:
    r"""A `table` for each, with a caption, a label and booktabs rules, to `\input` in a document.

    One wider than the text is scaled down. Labels are `tab:` and the words of the title.

    Args:
      first: what is said before the tables.
    """
    lines = [PACKAGES, *(_latex(each) + "\n" for each in first)]
    labels: dict[str, int] = {}
    for sheet in sheets:
        heads, *rows = (_latex_row(row) for row in (sheet.heads, *sheet.rows))
        label = re.sub(r"[^a-z0-9]+", "-", sheet.title.lower()).strip("-")
        labels[label] = labels.get(label, 0) + 1
        again = f"-{labels[label]}" * (labels[label] > 1)
        lines += [
            "\\begin{table}[tbp]",
            "\\centering",
            f"\\caption{{{_latex(sheet.title)}}}",
            f"\\label{{tab:{label}{again}}}",
            f"\\resizebox{{{FITTING}}}{{!}}{{\\begin{{tabular}}{{l{_alignment(sheet)}}}",
            "\\toprule",
            heads,
            "\\midrule",
            *rows,
            "\\bottomrule",
            "\\end{tabular}}",
            "\\end{table}",
            "",
        ]
    return "\n".join(lines + [_latex(note) + "\n" for note in notes]) + "\n"


def _latex_row(texts: Sequence[str]) -> str:
    """A row; what would be an option of the row before it, `[...]` or `*`, is put into braces."""
    row = " & ".join(map(_latex, texts))
    return ("{}" if row.startswith(("[", "*")) else "") + row + " \\\\"


def _alignment(sheet: Sheet) -> str:
    """`r` for each column of numbers after the first column, `l` for one of words."""
    columns = [[row[at] for row in sheet.rows] for at in range(1, len(sheet.heads))]
    return "".join("r" if numbers.is_numeric(texts) else "l" for texts in columns)


def html_rows(sheet: Sheet) -> Iterator[str]:
    """The rows of a table in HTML, a line for each."""
    for first, *rest in sheet.rows:
        data = "".join(f"<td>{html.escape(text)}</td>" for text in rest)
        yield f'<tr><th scope="row">{html.escape(first)}</th>{data}</tr>'


def csv_lines(heads: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV with a line of headings, and one for each row; what a row lacks is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _latex(text: str) -> str:
    """The text with its symbols escaped, and a minus sign before a negative number."""
    return with_minus("".join(LATEX.get(each, each) for each in text), "$-$")


def with_minus(text: str, sign: str) -> str:
    """The text with this sign in place of the hyphen before each negative number."""
    return re.sub(r"(?<![\w.)-])-(?=\.?\d)", sign, text)
