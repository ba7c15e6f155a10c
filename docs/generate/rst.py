"""Pieces of reStructuredText."""

import textwrap
from collections.abc import Iterable, Sequence


def heading(text: str, line: str) -> str:
    """A heading, underlined by a sign."""
    return f"{text}\n{line * max(len(text), 4)}"


def fenced(language: str, code: str) -> str:
    """A block of code."""
    return f".. code-block:: {language}\n\n{textwrap.indent(code.rstrip(), '   ')}"


def table(heads: Sequence[str] | None, rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are reStructuredText; without heads, the first column is one."""
    option = "   :stub-columns: 1" if heads is None else "   :header-rows: 1"
    lines = [".. list-table::", "   :class: facts", option, ""]
    for row in [*([] if heads is None else [heads]), *rows]:
        for place, cell in enumerate(row):
            lines.append(f"   {' ' if place else '*'} - {cell}")
    return "\n".join(lines)
