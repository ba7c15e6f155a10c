"""`metrics.jsonl`: what a run reported, line by line, whatever moment it is killed at."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_jax import full_disk, json_text, seal
from lora_jax.records import numbers, plain, write_atomically


class Metrics:
    """`metrics.jsonl` of a run: a JSON object with a "step" a line, there once `write` returns.

    The last key of a line is a check of it, "crc32": a line that was changed later is not read.
    Of the processes of a run, one writes it: that of the others is not `enabled`, and does nothing.
    """

    def __init__(self, workdir: str | os.PathLike, enabled: bool = True):
        self.path = Path(workdir) / "metrics.jsonl"
        self._file: Any = None
        if not enabled:
            return
        with full_disk.naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
        self.truncate(None)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends a line; what is not finite becomes the text "NaN", "Infinity" or "-Infinity".

        Raises:
          FullDiskError: there was no room for it; what is there of it is dropped by who goes on.
        """
        if self._file is None:
            return
        rest = seal.checked({"step": int(step)} | plain(values, "metrics")) + b"\n"
        with full_disk.naming(self.path):
            while rest:  # a disk that is almost full takes a part without a word
                rest = rest[self._file.write(rest) :]

    def truncate(self, step: int | None) -> None:
        """Drops the lines after a step (None: none of them) and a torn last line, atomically."""
        if self._file is None:
            return
        kept = [line for line, row in _rows(self.path) if step is None or row["step"] <= step]
        data = b"".join(kept)
        if data != self.path.read_bytes():
            self._file.close()
            write_atomically(self.path, data)
            self._file = self.path.open("ab", buffering=0)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, NaN and infinities floats again, without a torn last line.

    Raises:
      ValueError: a line that is none, or that was changed after it was written.
    """
    return [numbers(row) for _, row in _rows(Path(path))]


def _rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is torn
    for number, line in enumerate(lines, 1):
        try:
            row = json_text.loads(line, f"{path}, line {number}")
            if not isinstance(row["step"], int):
                raise TypeError
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                return  # a power cut can leave a last line of zeros
            raise ValueError(f"{path}, line {number} is not a JSON object with a step") from error
        if not seal.holds(line):
            raise ValueError(f"{path}, line {number} was changed after it was written")
        row.pop(seal.CHECK, None)
        yield line + b"\n", row
