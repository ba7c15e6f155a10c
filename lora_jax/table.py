"""One table of texts and numbers, and every way to write it.

    table = Table(("method", "score"), [["LoRA", Number(0.914, ".1%")], ["DoRA", None]])
    print(table.to_text())

Texts show a number as its format says; CSV files and data frames have its value.
"""

import csv
import dataclasses
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    import pandas as pd
    import rich.table

NONE = "–"
"""What stands where a text has no number."""
EMPTY = (NONE, "", "not run", "no number", "not measured", "no common seed", "one seed")
"""What stands where a number is missing: a column of numbers may have these words."""
FORMATS = ("rich", "markdown", "latex")
"""The formats of `render_tables`."""
LABEL = 32
"""The largest width of the first column, the names, on the console."""
PAGE = 45
"""The most rows of a table in LaTeX: a longer one is divided, so that each part fits a page."""
LONGEST = 40
"""The most characters of a label in LaTeX."""
PACKAGES = "% \\usepackage{booktabs, graphicx}"
"""The packages that a document needs to include our LaTeX: table rules, and `\\resizebox`."""

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
_FITTING = r"\ifdim\width>\linewidth\linewidth\else\width\fi"
"""The width of a box: its own, but at most the width of a line of text."""
_NUMBER = re.compile(r"\s*\[?[<>]?\s*([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(?![\w.])")


class Number(NamedTuple):
    """A number, and the format that texts write it with, such as `.2f`."""

    value: float
    form: str = ""

    def __str__(self) -> str:
        return format(self.value, self.form)


Cell = str | int | float | Number | None
Links = Sequence[Sequence[tuple[str, str]]]
"""For each row, texts with the addresses that they lead to."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows with a cell for each heading, a name first; None is a cell without a value."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""

    @classmethod
    def of_records(cls, heads: Sequence[str], records: Iterable[Mapping[str, Cell]]) -> Self:
        """A row for each record; what a record lacks is None.

        Raises:
          ValueError: a record has a name that is not a heading.
        """
        rows = []
        for record in records:
            if unknown := record.keys() - set(heads):
                raise ValueError(f"no columns {', '.join(sorted(unknown))}")
            rows.append([record.get(head) for head in heads])
        return cls(heads, rows)

    def texts(self) -> list[list[str]]:
        """The cells as texts."""
        return [["" if cell is None else str(cell) for cell in row] for row in self.rows]

    def values(self) -> list[list[str | float | None]]:
        """The cells as values: numbers without their formats, and without the sign of -0.0."""
        return [[_value(cell) for cell in row] for row in self.rows]

    def numeric(self) -> list[bool]:
        """Whether each column after the first one has numbers, and else only words for none."""
        columns = zip(self.heads, *self.texts(), strict=True)
        return [at > 0 and is_numeric(texts) for at, (_, *texts) in enumerate(columns)]

    def to_text(self) -> str:
        """Plain text; each column is as wide as its widest entry."""
        rows = self.texts()
        widths = [max(map(len, column)) for column in zip(self.heads, *rows, strict=True)]
        lines = [self.heads, ["-" * width for width in widths], *rows]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def to_rich(self, **style: Any) -> "rich.table.Table":
        """A table for rich's console. Texts stay what they are: `[r=8]` is not markup.

        Args:
          style: as for `rich.table.Table`.
        """
        import rich.table
        from rich.text import Text

        made = rich.table.Table(**style)
        for head in self.heads:
            made.add_column(Text(head))
        for row in self.texts():
            made.add_row(*map(Text, row))
        return made

    def to_markdown(self, escape: bool = True) -> str:
        """A title, if there is one, and the table.

        Args:
          escape: whether cells are plain texts; without it they are Markdown already, of which
            only a `|` or the end of a line must not end the cell.
        """
        written = markdown_text if escape else _markdown_cell
        rows = (self.heads, ["---"] * len(self.heads), *self.texts())
        lines = ["| " + " | ".join(map(written, row)) + " |" for row in rows]
        return "\n".join([*[f"**{written(self.title)}**", ""] * bool(self.title), *lines])

    def to_latex(self, label: str = "") -> str:
        r"""A `table` with a caption, a label and booktabs rules, to `\input` in a document.

        One wider than the text is scaled down.

        Args:
          label: follows `tab:`; by default it has the words of the title.
        """
        heads, *rows = (_latex_row(row) for row in (self.heads, *self.texts()))
        alignment = "".join("r" if numeric else "l" for numeric in self.numeric())
        lines = [
            "\\begin{table}[tbp]",
            "\\centering",
            f"\\caption{{{latex_text(self.title)}}}",
            f"\\label{{tab:{label or _label(self.title)}}}",
            f"\\resizebox{{{_FITTING}}}{{!}}{{\\begin{{tabular}}{{{alignment}}}",
            "\\toprule",
            heads,
            "\\midrule",
            *rows,
            "\\bottomrule",
            "\\end{tabular}}",
            "\\end{table}",
        ]
        return "\n".join(lines)

    def to_html(self, links: Links = ()) -> str:
        """The table in a box that scrolls sideways: numbers with the values that sort them.

        Args:
          links: if there are any, a last column has them.
        """
        name, numeric = html.escape(self.title), self.numeric()
        heads = [_html_head(text, own) for text, own in zip(self.heads, numeric, strict=True)]
        heads += [_html_head("runs' folders", False)] * bool(links)
        lines = [
            f"<h3>{name}</h3>",  # not a caption, which would scroll with the table
            f'<div class="scroll" tabindex="0"><table class="sortable" aria-label="{name}">',
            f"<thead><tr>{''.join(heads)}</tr></thead><tbody>",
        ]
        for at, (first, *rest) in enumerate(self.texts()):
            cells = [_html_cell(text, own) for text, own in zip(rest, numeric[1:], strict=True)]
            if links:
                cells.append(f"<td>{' '.join(_html_link(*each) for each in links[at])}</td>")
            lines.append(f'<tr><th scope="row">{html.escape(first)}</th>{"".join(cells)}</tr>')
        return "\n".join([*lines, "</tbody></table></div>"])

    def to_csv(self) -> str:
        """The values, below a line of headings; a cell without a value is empty."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.heads, *self.values()])
        return text.getvalue()

    def to_frame(self) -> "pd.DataFrame":
        """The values as a pandas data frame."""
        import pandas as pd

        return pd.DataFrame(self.values(), columns=list(self.heads))


def render_tables(
    form: str, tables: Sequence[Table], notes: Sequence[str] = (), first: Sequence[str] = ()
) -> str:
    """Several tables in one of `FORMATS`, with sentences before and after them.

    Args:
      notes: what follows the tables.
      first: what is said before them.
    """
    write = {"rich": _console, "markdown": _markdown, "latex": _latex}[form]
    return write(tables, notes, first)


def _console(tables: Sequence[Table], notes: Sequence[str], first: Sequence[str]) -> str:
    """The tables for a console of the current width; columns that do not fit follow below."""
    import shutil

    from rich import box
    from rich.console import Console
    from rich.text import Text

    width = shutil.get_terminal_size((240, 24)).columns
    console = Console(file=io.StringIO(), width=width)
    for each in first:
        console.print(f"{each}\n", markup=False, highlight=False)
    for table in tables:
        console.print(Text(table.title, style="bold"))
        for part in _that_fit(table, width - LABEL - 4):
            drawn = part.to_rich(box=box.SIMPLE_HEAD)
            for column in drawn.columns:
                column.no_wrap = True
            drawn.columns[0].max_width, drawn.columns[0].no_wrap = LABEL, False
            console.print(drawn)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _that_fit(table: Table, width: int) -> list[Table]:
    """The table in parts whose columns fit a width, each with the names and at least one column."""
    broken = [[text.replace(" / ", " /\n") for text in row] for row in table.texts()]
    columns = [list(each) for each in zip(table.heads, *broken, strict=True)]
    parts, used = [columns[:1]], 0
    for texts in columns[1:]:
        need = 3 + max(len(line) for text in texts for line in text.splitlines())
        if len(parts[-1]) > 1 and used + need > width:
            parts.append(columns[:1])
            used = 0
        parts[-1].append(texts)
        used += need
    rows = [list(zip(*part, strict=True)) for part in parts]
    return [Table(heads, others) for heads, *others in rows]


def _markdown(tables: Sequence[Table], notes: Sequence[str], first: Sequence[str]) -> str:
    parts = [*map(markdown_text, first), *(each.to_markdown() for each in tables)]
    return "\n".join(f"{part}\n" for part in [*parts, *map(markdown_text, notes)])


def _latex(tables: Sequence[Table], notes: Sequence[str], first: Sequence[str]) -> str:
    parts, labels = [latex_text(each) for each in first], dict[str, int]()
    for table in (part for each in tables for part in _pages(each)):
        label = _label(table.title)
        labels[label] = labels.get(label, 0) + 1
        parts.append(table.to_latex(label + f"-{labels[label]}" * (labels[label] > 1)))
    parts += [latex_text(note) for note in notes]
    return "\n".join([PACKAGES, *(f"{part}\n" for part in parts)]) + "\n"


def _pages(table: Table) -> list[Table]:
    """The table, or its parts of `PAGE` rows."""
    starts = range(0, len(table.rows), PAGE)
    if len(starts) < 2:
        return [table]
    return [
        Table(table.heads, table.rows[at : at + PAGE], f"{table.title} ({n} of {len(starts)})")
        for n, at in enumerate(starts, 1)
    ]


def _label(title: str) -> str:
    """The first words of a title, as many as fit."""
    label = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return label if len(label) <= LONGEST else label[: LONGEST + 1].rpartition("-")[0]


def _value(cell: Cell) -> str | float | None:
    value = cell.value if isinstance(cell, Number) else cell
    return value + 0.0 if isinstance(value, float) else value


def markdown_text(text: str) -> str:
    """The text with the signs escaped that mean something in Markdown."""
    return re.sub(r"([|*_`<\\])", r"\\\1", text)


def _markdown_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _latex_row(texts: Sequence[str]) -> str:
    """A row; what would be an option of the row before it, `[...]` or `*`, is put into braces."""
    row = " & ".join(map(latex_text, texts))
    return ("{}" if row.startswith(("[", "*")) else "") + row + " \\\\"


def latex_text(text: str) -> str:
    """The text with its symbols escaped, and a minus sign before a negative number."""
    return _with_minus("".join(LATEX.get(each, each) for each in text), "$-$")


def _html_head(text: str, numeric: bool) -> str:
    kind = ' class="number"' if numeric else ""
    return f'<th scope="col"{kind}>{html.escape(text)}</th>'


def _html_cell(text: str, numeric: bool) -> str:
    shown = _with_minus(html.escape(text), "&minus;")
    if not numeric:
        return f"<td>{shown}</td>"
    found = number_of(text)
    data = "" if found is None else f' data-value="{found:.12g}"'
    return f'<td class="number"{data}>{shown}</td>'


def _html_link(text: str, address: str) -> str:
    return f'<a href="{html.escape(address)}">{html.escape(text)}</a>'


def _with_minus(text: str, sign: str) -> str:
    """The text with this sign in place of the hyphen before each negative number."""
    return re.sub(r"(?<![\w.)-])-(?=\.?\d)", sign, text)


def is_numeric(texts: Sequence[str]) -> bool:
    """Whether a column has numbers, and nothing else but words for a missing one."""
    told = [text for text in texts if text not in EMPTY]
    return bool(told) and all(number_of(text) is not None for text in told)


def number_of(text: str) -> float | None:
    """The number that a cell begins with, such as that of `28.01 ± 2.70` or `<0.001`, or None."""
    found = _NUMBER.match(text)
    return None if found is None else float(found[1].replace(",", ""))
