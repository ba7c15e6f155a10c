"""Readable names: the headings of columns, and names in natural order."""

import re
from collections.abc import Iterable

from configs.common_tasks import TITLES


def heading(name: str) -> str:
    """The heading of a column from its key: `rte_100` gives RTE 100."""
    return TITLES.get(name) or " ".join(TITLES.get(part, part) for part in name.split("_"))


def natural(names: Iterable[str]) -> list[str]:
    """Distinct names in natural order, where numbers are sorted by size: r2 before r16."""

    def key(name: str) -> list[tuple[int, float, str]]:
        parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", name)
        return [(1, float(p), "") if i % 2 else (0, 0.0, p) for i, p in enumerate(parts)]

    return sorted(set(names), key=key)
