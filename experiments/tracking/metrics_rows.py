"""Read `metrics.jsonl` while a run writes it, without importing what the run imports."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHECK = "crc32"  # the key of a line's check (lora_jax.records.seal), which is no metric


class Rows(contextlib.AbstractContextManager["Rows"]):
    """The rows of a file that grows at its end.

    The checks of lines are not looked at: the lines are some moments old.
    """

    def __init__(self, path: Path):
        self._file = path.open("rb")
        self._rest = b""

    def new(self) -> Iterator[tuple[int, dict[str, float]]]:
        """The step and the numbers of each line that was completed since the last call."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            row = json.loads(line)
            step = row.pop("step")
            row.pop(CHECK, None)
            yield step, {name: value for name, text in row.items() for value in _number(text)}

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _number(value: Any) -> Iterator[float]:
    """The value if it is a number; those that JSON lacks are written as texts."""
    if value in ("NaN", "Infinity", "-Infinity") or type(value) in (int, float):
        yield float(value)
