"""What was gathered of weights, in one file: an adapter that began with it can begin so again."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.files.tree_file import load_tree, save_tree
from lora_jax.statistics import Seen, SeenGradient, SeenInputs


def save_seen(
    path: str | os.PathLike, seen: Mapping[str, Seen], meta: Mapping[str, Any] | None = None
) -> Path:
    """Write what `Adapted.gather` gave, and JSON values, to a .safetensors file (`save_tree`)."""
    return save_tree(path, {name: each._asdict() for name, each in seen.items()}, meta)


def load_seen(path: str | os.PathLike) -> tuple[dict[str, Seen], dict[str, Any]]:
    """What `save_seen` wrote: for `Adapted.init(..., seen=...)`, which then needs no data.

    Raises:
      ValueError: the file is damaged, or holds something else.
      FileNotFoundError: there is no such file.
    """
    tree, meta = load_tree(path)
    found: dict[str, Seen] = {}
    for name, each in tree.items():
        kinds = [kind for kind in (SeenGradient, SeenInputs) if {*kind._fields} == {*each}]
        if not kinds:
            raise ValueError(f"{path} was not written by lora_jax.save_seen")
        found[name] = kinds[0](**each)
    return found, meta
