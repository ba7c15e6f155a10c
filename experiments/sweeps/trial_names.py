"""The names of a sweep's trials: their overrides, as short as they stay apart."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_flags.config_path import get_value

from experiments.sweeps import sweep_flag

_UNSAFE = re.compile(r"[^A-Za-z0-9._+=-]+")


def labels_of(keys: Sequence[str]) -> dict[str, str]:
    """The shortest ending of each key that no other key has."""
    labels = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
        others = [other for other in keys if other != key]
        labels[key] = next(
            (e for e in ends if not any(f".{o}".endswith(f".{e}") for o in others)), key
        )
    return labels


def name_of(row: Mapping[str, str], labels: Mapping[str, str], config: ConfigDict) -> str:
    """A trial's name: its overrides, with settings in normal form, however they were written."""
    items = []
    for key, text in row.items():
        value: Any = text
        if key.startswith("config."):
            value = get_value(key.removeprefix("config."), config)
        written = str(value) if isinstance(value, ConfigDict) else sweep_flag.text_of(value)
        safe = _UNSAFE.sub("-", written)
        items.append(f"{labels[key]}={safe if safe == written else safe.strip('-')}")
    return ",".join(items)
