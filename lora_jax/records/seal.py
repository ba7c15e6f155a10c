"""Seals: a digest stored beside JSON content, so that a change is noticed.

They find damage and careless edits. They do not stop forgery: anyone can write a new seal.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.files import json_text
from lora_jax.files.atomic import write_atomically
from lora_jax.files.json_text import config_digest, plain

SEAL = "seal"
"""The key of the digest of all other entries."""
CHECK = "crc32"
"""The key of a line's check; it is always the last key."""

_HEAD, _TAIL = f', "{CHECK}": "'.encode(), b'"}'
_DIGITS = 8


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its seal, `config_digest`, which ignores the order of keys."""
    return {**values, SEAL: config_digest(values)}


def opened(values: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Split a file's values into the content and its seal, None if it has none.

    Raises:
      ValueError: the seal is null, which is never written.
    """
    if SEAL in values and values[SEAL] is None:
        raise ValueError("it was changed after it was written: its seal is null")
    return {key: each for key, each in values.items() if key != SEAL}, values.get(SEAL)


def require_unchanged(values: Mapping[str, Any], seal: Any) -> None:
    """Raise a ValueError if content has changed since it was sealed; a seal of None passes."""
    if seal is not None and seal != config_digest(values):
        raise ValueError("it was changed after it was written: its seal is of other content")


def checked(values: Mapping[str, Any], after: int = 0) -> bytes:
    """A non-empty object as a line of JSON; its last key checks this line and all lines before it.

    Args:
      after: the result of `line_digest` for the line before; 0 for the first line.

    Raises:
      ValueError: the object already has the key of the check.
    """
    if CHECK in values:
        raise ValueError(f"the key '{CHECK}' is taken: it holds the check of a line")
    line = json.dumps(values, allow_nan=False).encode()
    return line[:-1] + _HEAD + b"%08x" % zlib.crc32(line, after) + _TAIL


def check_of(line: bytes) -> str | None:
    """The check that a line ends with, eight hexadecimal digits; None if it has none."""
    return line[-len(_TAIL) - _DIGITS : -len(_TAIL)].decode() if has_check(line) else None


def has_check(line: bytes) -> bool:
    """Whether a line has a check, right or wrong; lines of earlier versions have none."""
    return f'"{CHECK}"'.encode() in line


def line_digest(line: bytes, after: int = 0) -> int:
    """A digest of this line and all lines before it, from which the next line's check continues.

    Raises:
      ValueError: the line's check does not match this line and those before it.
    """
    if not has_check(line):
        return zlib.crc32(line + b"\n", after)  # differs from a line that only lost its check
    head = len(line) - len(_HEAD) - _DIGITS - len(_TAIL)
    found = zlib.crc32(line[: max(head, 0)] + b"}", after)
    if head < 0 or line[head:] != _HEAD + b"%08x" % found + _TAIL:
        raise ValueError(f"'{CHECK}' is not the check of this line and those before it")
    return found


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Write values with their seal; the file is there whole, or as it was before."""
    text = json.dumps(sealed(plain(values)), indent=2, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def read(path: Path) -> dict[str, Any]:
    """The values of such a file.

    Raises:
      ValueError: it is not a JSON object, has no seal, or was changed after it was written.
    """
    content = json_text.read_object(path)
    try:
        values, found = opened(content)
        require_unchanged(values, found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if found is None:
        raise ValueError(f"{path} has no seal: another program wrote it, or it was changed")
    return values
