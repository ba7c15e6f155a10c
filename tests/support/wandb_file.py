"""Read the file of an offline run of Weights & Biases: a log of LevelDB with protobuf messages.

The library has the messages; its reader of the log is not written in Python.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEAD, START = 1 << 15, 7, 7  # bytes of a block, of a chunk's head, of the file's own head
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """All messages of a file."""
    data, at, parts = path.read_bytes(), START, b""
    while at + HEAD <= len(data):
        if (rest := BLOCK - at % BLOCK) < HEAD:
            at += rest
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEAD])
        parts += data[at + HEAD : at + HEAD + length]
        at += HEAD + length
        if kind in (FULL, LAST):
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def values(items: Any) -> dict[str, Any]:
    """The values of a message's items, by name."""
    return {each.key or "/".join(each.nested_key): json.loads(each.value_json) for each in items}
