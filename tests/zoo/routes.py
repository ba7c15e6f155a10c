"""How each family uses its weights, and which of them `all-linear` selects: `routes.csv`.

    PYTHONPATH=.:tests .venv-zoo/bin/python -m zoo.routes

writes the file again; look at what `git diff` says then.
"""

import csv
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import lora_jax as lj
from zoo.family import Family, families

FILE = Path(__file__).with_name("routes.csv")
HEADS = ("family", "weights", "in -> out", "stack", "used as", "merged at", "selected by")

Row = tuple[str, ...]


def routes(name: str, family: Family) -> list[Row]:
    """A row for each weight of two axes or more; weights that differ by a number share one."""
    uses = lj.discover(family.forward, family.params, *family.inputs)
    rows = []
    for path, use in uses.items():
        if use.is_linear:
            selected = "all-linear"
        else:
            selected = "all-linear+conv" if use.is_convolution else ""
        if not selected and len(use.shape) < 2:
            continue
        kinds = dict.fromkeys(str(each) for each in use.uses)
        merged = dict.fromkeys(each.merges for each in use.uses if each.merges)
        matrix = "{} -> {}".format(*use.matrix) if use.is_matrix else ""
        stack = "x".join(map(str, use.stack_shape))
        weights = re.sub(r"\d+(?=/|$)", "N", path)
        used = ", ".join(kinds) or "not used"
        rows.append((name, weights, matrix, stack, used, ", ".join(merged), selected))
    return list(dict.fromkeys(rows))


def read() -> dict[str, list[Row]]:
    """The rows that are committed, by family."""
    found: dict[str, list[Row]] = {}
    with FILE.open(encoding="utf-8", newline="") as file:
        for row in list(csv.reader(file))[1:]:
            found.setdefault(row[0], []).append(tuple(row))
    return found


def write(rows: Iterable[Row]) -> None:
    with FILE.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADS, *rows])


def main() -> None:
    write(row for name, make in families().items() for row in routes(name, make()))


if __name__ == "__main__":
    sys.exit(main())
