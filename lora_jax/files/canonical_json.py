"""Values in strict JSON, the canonical text of a value, and its digest."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

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
