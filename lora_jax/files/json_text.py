"""JSON that somebody else wrote, read as the standard has it or refused in one line.

Python's own reader takes more than is JSON (NaN, 1e999 as infinity, the last of two equal keys),
and some of what it refuses ends in other errors than a ValueError. Everything of users and of
published files is read here.
"""

import decimal
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DEPTH = 100
"""Lists and objects inside of one another: no file needs more, and what walks them recurses."""


def loads(content: str | bytes, where: str, exact: bool = False) -> Any:
    """The value of a JSON text, UTF-8 where it is bytes; a byte order mark before it is left out.

    Args:
      where: what the text is, for errors: a file, a line of one.
      exact: numbers with a fraction or an exponent are Decimals, every digit as it stands there.

    Raises:
      ValueError: one line that begins with `where`, for anything that is not JSON, nested deeper
        than `DEPTH`, a key twice in one object with different values, or a number that is too
        large.
    """
    text = _decoded(content, where)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_float=_decimal if exact else _float,
            parse_constant=_constant,
        )
    except RecursionError:
        raise ValueError(f"{where} is nested deeper than {DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    except ValueError as error:
        # Of the hooks below, or of Python, which makes no integer of thousands of digits.
        said = "a number has too many digits" if "integer string" in str(error) else error
        raise ValueError(f"{where} is not JSON: {said}") from None
    if text.count("[") + text.count("{") > DEPTH and _is_deep(value):
        raise ValueError(f"{where} is nested deeper than {DEPTH} levels")
    return value


def read(path: Path, exact: bool = False) -> Any:
    """The value in a JSON file; ValueError as of `loads`, OSError where it cannot be read."""
    return loads(path.read_bytes(), str(path), exact)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError for any other value as well."""
    value = read(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got a {type(value).__name__}")
    return value


def _decoded(content: str | bytes, where: str) -> str:
    if isinstance(content, str):
        return content.removeprefix("\ufeff")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not JSON: it is not UTF-8: {error}") from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # of equal values, none is lost
        for key, value in pairs:
            if not _same(found[key], value):
                raise ValueError(f"an object has the key {key!r} twice, with different values")
    return found


def _same(one: Any, other: Any) -> bool:
    """Whether two plain values are one: 1, 1.0 and true are three; lists are not compared."""
    plain = str, int, float, bool, type(None), decimal.Decimal
    return type(one) is type(other) and isinstance(one, plain) and one == other


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {_short(text)} is too large")
    return value


def _decimal(text: str) -> decimal.Decimal:
    _float(text)
    try:
        return decimal.Decimal(text)
    except decimal.InvalidOperation:  # an exponent that not even a Decimal has
        raise ValueError(f"the number {_short(text)} is too small") from None


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:21]}..."


def _is_deep(value: Any) -> bool:
    """Whether there are more than `DEPTH` levels of lists and objects; nothing recurses."""
    level = [value]
    for _ in range(DEPTH):
        held: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                held += each.values()
            elif isinstance(each, list):
                held += each
        if not held:
            return False
        level = held
    return any(isinstance(each, dict | list) for each in level)
