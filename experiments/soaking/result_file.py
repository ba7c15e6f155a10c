"""The file of a part's results, which a later soak goes on from, and its table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_jax.files import json_text
from lora_jax.files.atomic import write_atomically
from lora_jax.records.environment import environment
from lora_jax.table import Table


def write(out: Path, part: str, settings: Mapping[str, Any], rows: Sequence[Any]) -> None:
    """Write OUT/PART.json: the settings, the versions, and a row for each thing that was tried.

    Each row is one line.
    """
    found = environment()
    head = {
        "part": part,
        "settings": dict(settings),
        "versions": found["versions"],
        "device": found["device"],
        "git": found["git"],
    }
    lines = ",\n".join(f"  {json.dumps(each)}" for each in rows)
    text = f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{lines}\n ]\n}}\n'
    write_atomically(out / f"{part}.json", text.encode())


def read(out: Path, part: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier soak; empty if there is none.

    Raises:
      ValueError: the file is not JSON, has no rows, or has those of other settings or code.
    """
    path = out / f"{part}.json"
    if not path.exists():
        return []
    content = json_text.read_object(path)
    if not isinstance(content.get("rows"), list):
        raise ValueError(f"{path} has no rows: delete it to start over")
    now = {**environment(), "settings": dict(settings)}
    for name, said in (("settings", "settings"), ("versions", "code"), ("git", "code")):
        if content.get(name) != now[name]:
            raise ValueError(
                f"{path} has results of other {said}: name another --out, or delete it"
            )
    return content["rows"]


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A table of some columns of rows as lines of text."""
    return Table(columns, [[str(each[name]) for name in columns] for each in rows]).to_text()
