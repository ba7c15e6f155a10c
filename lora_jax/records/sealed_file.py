"""JSON files that a command goes on from: a change is noticed when they are read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.files import json_text
from lora_jax.files.atomic import write_atomically
from lora_jax.files.canonical_json import plain
from lora_jax.records import seal


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Write values with their seal; the file is there whole, or as it was before."""
    text = json.dumps(seal.sealed(plain(values)), indent=2, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def read(path: Path) -> dict[str, Any]:
    """The values of such a file.

    Raises:
      ValueError: it is no JSON object, has no seal, or was changed after it was written.
    """
    content = json_text.read_object(path)
    try:
        values, found = seal.opened(content)
        seal.require_unchanged(values, found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if found is None:
        raise ValueError(f"{path} has no seal: it is of another program, or was changed")
    return values
