"""Strict JSON: read it from untrusted sources, write values in it, and digest its canonical text.

Python's own reader accepts more than JSON (NaN, 1e999 as infinity, the last of two equal keys), and
some of its refusals are not ValueErrors. All JSON of users and of published files is read here, and
what is not strictly JSON is refused with a one-line error.
"""

import decimal
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DEPTH = 100
"""The deepest nesting of lists and objects: no file needs more, and later code recurses."""


def loads(content: str | bytes, where: str, exact: bool = False) -> Any:
    """The value of a JSON text; bytes are read as UTF-8, and a leading byte order mark is dropped.

    Args:
      where: where the text comes from, for errors: a file, or a line of a file.
      exact: read numbers with a fraction or an exponent as Decimals, so that no digit is lost.

    Raises:
      ValueError: the text is not JSON, is nested deeper than `DEPTH`, has one key with two
        different values in one object, or has a number that is too large. The message is one line
        that begins with `where`.
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
        # From the hooks below, or from Python, which refuses integers of thousands of digits.
        said = "a number has too many digits" if "integer string" in str(error) else error
        raise ValueError(f"{where} is not JSON: {said}") from None
    if text.count("[") + text.count("{") > DEPTH and _is_deep(value):
        raise ValueError(f"{where} is nested deeper than {DEPTH} levels")
    return value


def read(path: Path, exact: bool = False) -> Any:
    """The value in a JSON file; ValueError as in `loads`, OSError if it cannot be read."""
    return loads(path.read_bytes(), str(path), exact)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, as `read`; ValueError for a value of any other type."""
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
    if len(found) < len(pairs):  # equal values are allowed: none is lost
        for key, value in pairs:
            if not _same(found[key], value):
                raise ValueError(f"an object has the key {key!r} twice, with different values")
    return found


def _same(one: Any, other: Any) -> bool:
    """Whether two plain values are equal: 1, 1.0 and true differ; lists and objects never are."""
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
    except decimal.InvalidOperation:  # an exponent out of even a Decimal's range
        raise ValueError(f"the number {_short(text)} is too small") from None


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON")


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:21]}..."


def _is_deep(value: Any) -> bool:
    """Whether there are more than `DEPTH` levels of lists and objects; found without recursion."""
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


_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def plain(value: Any, where: str = "value") -> Any:
    """Convert a value for strict JSON: tuples to lists, 0-d arrays to numbers, NaN to "NaN"."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r}: keys must be text")
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float):  # np.float64 is one too
        name = {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
        return float(value) if math.isfinite(value) else name
    if value is None or isinstance(value, bool | int | str):
        return value
    if getattr(value, "shape", None) == ():
        return plain(value.item(), where)
    raise ValueError(
        f"{where} is a {type(value).__name__}: expected numbers, text, lists and dicts"
    )


def numbers(value: Any) -> Any:
    """Undo `plain` for numbers: turn the texts "NaN", "Infinity" and "-Infinity" into floats."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def canonical(value: Any) -> str:
    """The canonical JSON text of a value: sorted keys, floats by repr; 1, 1.0 and True differ."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def config_digest(config: Mapping[str, Any]) -> str:
    """The sha256 of a configuration's canonical JSON; the order of keys does not matter."""
    return hashlib.sha256(canonical(config).encode()).hexdigest()
