"""Tables rendered as Markdown and read back, and the notes below them."""

import re
from pathlib import Path

from experiments.reports.tables import config_tables


def markdown(name: str, results: Path, **choice: str) -> dict[str, dict[str, dict[str, str]]]:
    """A rendered table read back: by block, method and heading."""
    text = config_tables.render_table(name, results, "markdown", **choice).replace("\\", "")
    blocks: dict[str, dict[str, dict[str, str]]] = {}
    for title, body in re.findall(r"\*\*(.*?)\*\*\n\n((?:\|.*\n)+)", text):
        heads, _, *rows = [line.strip("| ").split(" | ") for line in body.splitlines()]
        model = re.sub(r".*, ", "", title)
        blocks[model] = {row[0]: dict(zip(heads[1:], row[1:], strict=True)) for row in rows}
    return blocks


def notes(name: str, results: Path) -> str:
    return (
        config_tables.render_table(name, results, "markdown").rpartition("|\n")[2].replace("\\", "")
    )
