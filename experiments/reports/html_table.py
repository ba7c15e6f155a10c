"""Write a table of a report in HTML: numbers at the right, each with the value that sorts it."""

import html
from collections.abc import Sequence

from experiments.tables.numbers import is_numeric, value
from experiments.tables.text_formats import Sheet, with_minus

Links = Sequence[Sequence[tuple[str, str]]]
"""For each row, texts with the addresses that they lead to."""


def table(sheet: Sheet, links: Links = ()) -> str:
    """The table, in a box that scrolls sideways.

    Args:
      links: if there are any, a last column has them.
    """
    name = html.escape(sheet.title)
    columns = [[row[at] for row in sheet.rows] for at in range(len(sheet.heads))]
    numeric = [at > 0 and is_numeric(texts) for at, texts in enumerate(columns)]
    heads = [_head(text, own) for text, own in zip(sheet.heads, numeric, strict=True)]
    heads += [_head("runs' folders", False)] * bool(links)
    lines = [
        f"<h3>{name}</h3>",  # not a caption, which would scroll with the table
        f'<div class="scroll" tabindex="0"><table class="sortable" aria-label="{name}">',
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>",
    ]
    for at, (first, *rest) in enumerate(sheet.rows):
        cells = [_cell(text, own) for text, own in zip(rest, numeric[1:], strict=True)]
        if links:
            cells.append(f"<td>{' '.join(_link(*each) for each in links[at])}</td>")
        lines.append(f'<tr><th scope="row">{html.escape(first)}</th>{"".join(cells)}</tr>')
    return "\n".join([*lines, "</tbody></table></div>"])


def _head(text: str, numeric: bool) -> str:
    kind = ' class="number"' if numeric else ""
    return f'<th scope="col"{kind}>{html.escape(text)}</th>'


def _cell(text: str, numeric: bool) -> str:
    shown = with_minus(html.escape(text), "&minus;")
    if not numeric:
        return f"<td>{shown}</td>"
    found = value(text)
    data = "" if found is None else f' data-value="{found:.12g}"'
    return f'<td class="number"{data}>{shown}</td>'


def _link(text: str, address: str) -> str:
    return f'<a href="{html.escape(address)}">{html.escape(text)}</a>'
