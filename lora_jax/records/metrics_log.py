"""`metrics.jsonl`: a run's metrics, one line a report; complete lines survive a kill."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_jax.files import full_disk, json_text
from lora_jax.files.atomic import write_atomically
from lora_jax.files.json_text import numbers, plain
from lora_jax.records import seal


class LostFolderError(ValueError):
    """A run's folder was removed or replaced while the run was going."""


class Metrics(contextlib.AbstractContextManager["Metrics"]):
    """A run's `metrics.jsonl`: each line is a JSON object with a "step", written by `write`.

    A line is in the file once `write` returns. Its last key, "crc32", checks this line and all
    lines before it: `read_metrics` refuses a file in which a line was changed, dropped, doubled or
    moved. Missing last lines are noticed only by who knows the check of the last one. A change of a
    file without checks (from an earlier version) is not noticed if its record has no seal either.
    With several processes, one writes: in the others, `enabled` is False and nothing happens.
    """

    def __init__(self, workdir: str | os.PathLike, enabled: bool = True):
        self.path = Path(workdir) / "metrics.jsonl"
        self._file: Any = None
        self._after = 0  # the checksum that the next line's check continues
        if not enabled:
            return
        with full_disk.naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
        self.truncate(None)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a line; non-finite numbers become the texts "NaN", "Infinity" or "-Infinity".

        Raises:
          FullDiskError: there was no room; a resumed run drops the torn line.
          LostFolderError: as in `require`.
        """
        self.require()
        if self._file is None:
            return
        line = seal.checked({"step": int(step)} | plain(values, "metrics"), self._after)
        rest = line + b"\n"
        with full_disk.naming(self.path):
            while rest:  # an almost full disk writes a part and reports no error
                rest = rest[self._file.write(rest) :]
        self._after = seal.line_digest(line, self._after)

    def require(self) -> None:
        """Raise a LostFolderError if the file at this path is no longer the one being written.

        After a run's folder is removed, another process may start there; this one must then not
        write.
        """
        if self._file is None:
            return
        try:
            same = os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            same = False
        if not same:
            raise LostFolderError(
                f"{self.path} was removed or replaced during its run, which has stopped"
            )

    @property
    def checksum(self) -> int | None:
        """The checksum of all lines so far; None if another process writes them."""
        return None if self._file is None else self._after

    def truncate(self, step: int | None, checksum: int | None = None) -> None:
        """Drop the lines after `step` (None keeps all) and a torn last line, atomically.

        Raises:
          ValueError: lines until `step` are missing, as their `checksum` is another.
        """
        if self._file is None:
            return
        kept, after = [], 0
        for line, row in _rows(self.path.read_bytes(), str(self.path)):
            if step is None or row["step"] <= step:
                if seal.has_check(line):  # it changes if earlier lines were dropped
                    line = seal.checked(row, after)
                kept.append(line + b"\n")
                after = seal.line_digest(line, after)
        if checksum not in (None, after):
            raise ValueError(
                f"{self.path} has lost lines that were in it when step {step} was saved: put the "
                "file back, or delete the checkpoints to train from the start"
            )
        self._after, data = after, b"".join(kept)
        if data != self.path.read_bytes():
            self._file.close()
            write_atomically(self.path, data)
            self._file = self.path.open("ab", buffering=0)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __exit__(self, *_) -> None:
        self.close()


def last_check(path: str | os.PathLike) -> str | None:
    """The check of the last line of a `metrics.jsonl`; None if it has none, or cannot be read."""
    try:
        lines = [line for line, _ in _rows(Path(path).read_bytes(), str(path))]
    except (OSError, ValueError):  # who reads the rows will say so
        return None
    return seal.check_of(lines[-1]) if lines else None


def read_metrics(
    path: str | os.PathLike, sealed: bool = False, check: str | None = None
) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, NaN and infinities as floats; a torn last line is dropped.

    Args:
      sealed: whether the record beside it has a seal. Versions that seal records also write
        checks, so lines without checks have lost them.
      check: what the record says of the last line (`last_check`); None if it says nothing.

    Raises:
      ValueError: a line that is not a JSON object with a step, or that was changed or moved, or the
        last line is not that of the record.
    """
    try:
        return rows_of(Path(path).read_bytes(), str(path), sealed, check)
    except ValueError as error:
        said = "if you delete the file, no curves of this run are drawn"
        raise ValueError(f"{error}; {said}") from error


def rows_of(
    content: bytes, where: str, sealed: bool = False, check: str | None = None
) -> list[dict[str, Any]]:
    """The rows of the content of a `metrics.jsonl`, which is at `where`; as `read_metrics`."""
    rows = list(_rows(content, where))
    if sealed and rows and not seal.has_check(rows[-1][0]):
        raise ValueError(
            f"{where} has no checks ({seal.CHECK}), but its record has a seal: it was changed "
            "after it was written"
        )
    if check is not None and (not rows or seal.check_of(rows[-1][0]) != check):
        raise ValueError(
            f"{where} does not end with the line that its record names: it was cut, or is that of "
            "another run"
        )
    return [numbers(row) for _, row in rows]


def _rows(content: bytes, file: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
    lines = content.split(b"\n")[:-1]  # what follows the last newline is torn
    if lines and lines[-1] and not lines[-1].strip(b"\0"):
        lines.pop()  # a power cut can leave a last line of zeros
    after, has_checks = 0, False
    for number, line in enumerate(lines, 1):
        where = f"{file}, line {number}"
        try:
            row = json_text.loads(line, where)
            if type(row["step"]) is not int:
                raise TypeError
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{where} is not a JSON object with a step") from error
        if has_checks and not seal.has_check(line):
            raise ValueError(f"{where} has no check ({seal.CHECK}), as those before it have")
        try:
            after = seal.line_digest(line, after)
        except ValueError as error:
            raise ValueError(
                f"{where} or a line before it was changed after it was written"
            ) from error
        has_checks = row.pop(seal.CHECK, None) is not None
        yield line, row
