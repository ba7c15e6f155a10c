"""Readable names: the headings of columns, the names of methods, and both in natural order."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping

import variants
from configs.common_tasks import STORAGES, TITLES, stored
from lora_jax.variant import Variant


@dataclasses.dataclass(frozen=True)
class Titles:
    """What the rows and the columns of a table are called, by key."""

    rows: Mapping[str, str]
    columns: Mapping[str, str]

    def column(self, key: str) -> str:
        """The title of a column, or the usual heading of its key."""
        return self.columns.get(key) or heading(key)


UNTITLED = Titles({}, {})


def heading(name: str) -> str:
    """The heading of a column from its key: `rte_100` gives RTE 100."""
    return TITLES.get(name) or " ".join(TITLES.get(part, part) for part in name.split("_"))


def method(key: str) -> str:
    """The name of a row from its key: `vera_nf4` gives VeRA on NF4.

    A row that is not a variant, or one that is not to be found here, is named by its key.
    """
    name, storage = stored(key)
    if (kind := _variant(name)) is None:
        return key
    title = vars(kind).get("title", kind.__name__)  # a subclass is another method
    return title if storage == "none" else f"{title} on {STORAGES[storage]}"


def told_apart(labels: Mapping[str, str]) -> dict[str, str]:
    """Names by key; a name that several keys share is followed by the key."""
    count = Counter(labels.values())
    return {key: f"{name} ({key})" if count[name] > 1 else name for key, name in labels.items()}


def in_order(keys: Iterable[str]) -> list[str]:
    """Distinct keys of rows in natural order, after methods without adapters, and LoRA.

    Others are compared with these: a report takes its first row as the reference.
    """

    def place(key: str) -> tuple[bool, bool]:
        name, _ = stored(key)
        return getattr(_variant(name), "adapts", True), name != "lora"

    return sorted(natural(keys), key=place)


def _variant(name: str) -> type[Variant] | None:
    try:
        return variants.find(name)
    except (ValueError, ImportError):
        return None


def natural(names: Iterable[str]) -> list[str]:
    """Distinct names in natural order, where numbers are sorted by size: r2 before r16."""

    def key(name: str) -> list[tuple[int, float, str]]:
        parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", name)
        return [(1, float(p), "") if i % 2 else (0, 0.0, p) for i, p in enumerate(parts)]

    return sorted(set(names), key=key)
