"""Seals: a digest of JSON content beside it, so that a change does not go unseen.

They find what was damaged, or changed in passing. Who means to forge can seal anew.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any

from lora_jax.files.canonical_json import config_digest

SEAL = "seal"
"""The key of the digest of all that is beside it."""
CHECK = "crc32"
"""The key, always the last one, of the check of a line."""

_HEAD, _TAIL = f', "{CHECK}": "'.encode(), b'"}'
_DIGITS = 8


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a file with its seal: `config_digest` of it, whatever the order of keys."""
    return {**values, SEAL: config_digest(values)}


def opened(values: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The content, and the seal that it was found with; None where it has none.

    Raises:
      ValueError: a seal of null, which nothing writes.
    """
    if SEAL in values and values[SEAL] is None:
        raise ValueError("it was changed after it was written: its seal is null")
    return {key: each for key, each in values.items() if key != SEAL}, values.get(SEAL)


def check(values: Mapping[str, Any], seal: Any) -> None:
    """Raise a ValueError where content has changed since it was sealed."""
    if seal is not None and seal != config_digest(values):
        raise ValueError("it was changed after it was written: its seal is of other content")


def checked(values: Mapping[str, Any], after: int = 0) -> bytes:
    """An object, not an empty one, as a line of JSON that ends with a check of all before it.

    Args:
      after: what `follow` gave for the line before it.
    """
    if CHECK in values:
        raise ValueError(f"nothing may be called '{CHECK}', as the check of a line is")
    line = json.dumps(values, allow_nan=False).encode()
    return line[:-1] + _HEAD + b"%08x" % zlib.crc32(line, after) + _TAIL


def has_check(line: bytes) -> bool:
    """Whether a line has a check, be it right or not: those of earlier versions have none."""
    return f'"{CHECK}"'.encode() in line


def follow(line: bytes, after: int = 0) -> int:
    """What the check of the next line goes on from: a digest of a line and of all before it.

    Raises:
      ValueError: the line's check is not of it, after those.
    """
    if not has_check(line):
        return zlib.crc32(line + b"\n", after)  # not as if its check had only been dropped
    head = len(line) - len(_HEAD) - _DIGITS - len(_TAIL)
    found = zlib.crc32(line[: max(head, 0)] + b"}", after)
    if head < 0 or line[head:] != _HEAD + b"%08x" % found + _TAIL:
        raise ValueError(f"'{CHECK}' is not the check of this line and those before it")
    return found


def holds(line: bytes, after: int = 0) -> bool:
    """Whether a line is as `checked` made it, or has no check, as those of earlier versions."""
    try:
        follow(line, after)
    except ValueError:
        return False
    return True
