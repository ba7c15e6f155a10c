"""Find the numbers in the cells of a table, to align and to sort them."""

import re
from collections.abc import Sequence

from experiments.tables.cells import NONE

EMPTY = (NONE, "", "not run", "no number", "not measured", "no common seed", "one seed")
"""What stands where a number is missing."""
_NUMBER = re.compile(r"\s*\[?[<>]?\s*([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(?![\w.])")


def is_numeric(texts: Sequence[str]) -> bool:
    """Whether a column has numbers, and nothing else but words for a missing one."""
    told = [text for text in texts if text not in EMPTY]
    return bool(told) and all(value(text) is not None for text in told)


def value(text: str) -> float | None:
    """The number that a cell begins with, such as that of `28.01 ± 2.70` or `<0.001`, or None."""
    found = _NUMBER.match(text)
    return None if found is None else float(found[1].replace(",", ""))
