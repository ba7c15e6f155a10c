"""Markdown in which texts of any kind stay what they are."""

import re
from collections.abc import Iterable, Sequence

from lora_jax.table import Table


def code(text: str) -> str:
    """A text as inline code, on one line."""
    text = " ".join(text.split())
    fence = "`" * (_ticks(text) + 1)
    room = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{room}{text}{room}{fence}" if text else ""


def block(text: str, language: str = "") -> str:
    """Lines as a block of code."""
    fence = "`" * max(3, _ticks(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; a `|` in a cell stays one."""
    return Table(heads, list(rows)).to_markdown(escape=False)


def _ticks(text: str) -> int:
    """How many backticks follow each other at most."""
    return max(map(len, re.findall("`+", text)), default=0)
