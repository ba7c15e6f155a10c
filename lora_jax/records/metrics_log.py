"""`metrics.jsonl`: what a run reported, line by line, whatever moment it is killed at."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_jax.files import full_disk, json_text
from lora_jax.files.atomic import write_atomically
from lora_jax.files.canonical_json import numbers, plain
from lora_jax.records import seal


class LostFolderError(ValueError):
    """A run's folder was removed, or another one put in its place, while the run was going."""


class Metrics:
    """`metrics.jsonl` of a run: a JSON object with a "step" a line, there once `write` returns.

    The last key of a line is a check of it and of all before it, "crc32": a file of which a line
    was changed, dropped, doubled or moved later is not read. That its last lines are gone is not
    seen, nor is a change of a file that has no checks, being of an earlier version, as long as its
    record has no seal either (see `read_metrics`).
    Of the processes of a run, one writes it: that of the others is not `enabled`, and does nothing.
    """

    def __init__(self, workdir: str | os.PathLike, enabled: bool = True):
        self.path = Path(workdir) / "metrics.jsonl"
        self._file: Any = None
        self._after = 0  # what the next line's check goes on from
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
          LostFolderError: as of `require`.
        """
        self.require()
        if self._file is None:
            return
        line = seal.checked({"step": int(step)} | plain(values, "metrics"), self._after)
        rest = line + b"\n"
        with full_disk.naming(self.path):
            while rest:  # a disk that is almost full takes a part without a word
                rest = rest[self._file.write(rest) :]
        self._after = seal.follow(line, self._after)

    def require(self) -> None:
        """Raise a LostFolderError where the file is no longer the one that is being written.

        Whoever removes a run's folder lets another process begin there, beside which this one is
        to write nothing.
        """
        if self._file is None:
            return
        try:
            same = os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            same = False
        if not same:
            raise LostFolderError(
                f"{self.path} was removed or replaced while its run was going, which has stopped"
            )

    def truncate(self, step: int | None) -> None:
        """Drops the lines after a step (None: none of them) and a torn last line, atomically."""
        if self._file is None:
            return
        kept, after = [], 0
        for line, row in _rows(self.path):
            if step is None or row["step"] <= step:
                if seal.has_check(line):  # another one, where lines before it were dropped
                    line = seal.checked(row, after)
                kept.append(line + b"\n")
                after = seal.follow(line, after)
        self._after, data = after, b"".join(kept)
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


def read_metrics(path: str | os.PathLike, sealed: bool = False) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, NaN and infinities floats again, without a torn last line.

    Args:
      sealed: whether the record beside it has a seal: who seals records writes checks as well, so
        that lines without any have lost them.

    Raises:
      ValueError: a line that is none, or that is not as or where it was written.
    """
    rows = list(_rows(Path(path)))
    if sealed and rows and not seal.has_check(rows[-1][0]):
        raise ValueError(
            f"{path} has no checks ({seal.CHECK}), but its record has a seal: it was changed after "
            "it was written; delete the file, and no curves are drawn of this run"
        )
    return [numbers(row) for _, row in rows]


def _rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is torn
    if lines and lines[-1] and not lines[-1].strip(b"\0"):
        lines.pop()  # a power cut can leave a last line of zeros
    after, has_checks = 0, False
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            row = json_text.loads(line, where)
            if type(row["step"]) is not int:
                raise TypeError
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{where} is not a JSON object with a step") from error
        if has_checks and not seal.has_check(line):
            raise ValueError(f"{where} has no check ({seal.CHECK}), as those before it have")
        try:
            after = seal.follow(line, after)
        except ValueError as error:
            raise ValueError(
                f"{where} was changed after it was written, or one before it was"
            ) from error
        has_checks = row.pop(seal.CHECK, None) is not None
        yield line, row
