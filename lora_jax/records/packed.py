"""Read the finished runs of a study from three files, which stand for a folder of each run.

    runs.records.jsonl.gz    a line for each run: its record.json, with its seal
    runs.metrics.jsonl.gz    all lines of the runs' metrics.jsonl, with their checks
    runs.predictions.npz     the arrays of their predictions.npz, as RUN/PART and RUN/PART/label

A line begins with its run, {"run": "cola/runs/lora/0", ...}: the folder that it stands for, as seen
from that of the three files. The rest is what the run wrote. Its config.json is the `config` of its
record. Labels that all runs below a folder share are there once, as FOLDER/PART/label.
`experiments.pack` writes these files.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lora_jax.files import archives, json_text
from lora_jax.records import metrics_log, run_record, seal

RECORDS = "runs.records.jsonl.gz"
METRICS = "runs.metrics.jsonl.gz"
PREDICTIONS = "runs.predictions.npz"

_HEAD = re.compile(rb'\{"run": ("(?:[^"\\]|\\.)+"), ')


@dataclasses.dataclass(frozen=True, eq=False)
class Pack:
    """The packed runs of a folder; each of its files is read when it is first needed, and once.

    Everything here raises a ValueError for a file or a line that is damaged or was changed, and a
    FileNotFoundError for a file that is gone.
    """

    folder: Path

    @functools.cached_property
    def records(self) -> dict[str, bytes]:
        """The JSON text of each run's record, by run."""
        found: dict[str, bytes] = {}
        for run, text in _lines(self.folder / RECORDS):
            if run in found:
                raise ValueError(f"{self.folder / RECORDS} has run {run} twice")
            found[run] = text
        return found

    def values(self, run: str) -> dict[str, Any]:
        """The content of a run's record.json."""
        return json_text.loads(self.records[run], f"{self.folder / RECORDS}, run {run}")

    def record(self, run: str) -> tuple[run_record.Record, bool]:
        """The record of a run, validated, and whether it has a seal."""
        where = f"{self.folder / RECORDS}, run {run}"
        return run_record.opened(self.values(run), where, lambda: seal.has_check(self.log(run)))

    def log(self, run: str) -> bytes:
        """The content of a run's metrics.jsonl; empty if it had none."""
        return b"".join(line + b"\n" for line in self._logs.get(run, ()))

    def metrics(self, run: str, sealed: bool, check: str | None) -> list[dict[str, Any]]:
        """The rows of a run's metrics, as `metrics_log.read_metrics` gives them."""
        where = f"{self.folder / METRICS}, run {run}"
        return metrics_log.rows_of(self.log(run), where, sealed, check)

    def arrays(self, run: str) -> dict[str, np.ndarray]:
        """The arrays of a run's predictions.npz, by name; empty if it had none."""
        own: dict[str, np.ndarray] = {}
        for part in self._parts.get(run, ()):
            own[part] = self._arrays[f"{run}/{part}"]
            places = [
                labels_name(each, part) for each in (run, *map(str, PurePosixPath(run).parents))
            ]
            if place := next((each for each in places if each in self._arrays), None):
                own[f"{part}/label"] = self._arrays[place]
        return own

    @functools.cached_property
    def _logs(self) -> dict[str, list[bytes]]:
        found: dict[str, list[bytes]] = {}
        for run, text in _lines(self.folder / METRICS):
            found.setdefault(run, []).append(text)
        return found

    @functools.cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        path = self.folder / PREDICTIONS
        try:
            return archives.read_arrays(path)
        except ValueError as error:
            said = " ".join(str(error).split())
            raise ValueError(f"{path} is damaged ({said}): put the file back") from error

    @functools.cached_property
    def _parts(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self._arrays:
            run, _, part = name.rpartition("/")
            if part != "label":
                found.setdefault(run, []).append(part)
        return found


def around(folder: Path) -> Iterator[tuple[Pack, list[str]]]:
    """The packs of the runs in and below a folder, and which of their runs lie there.

    The folder may be one that a pack stands for, such as that of a packed run.
    """
    for path in sorted(folder.rglob(RECORDS)):
        yield (pack := Pack(path.parent)), [*pack.records]
    for parent in folder.parents:
        if (parent / RECORDS).exists():
            pack = Pack(parent)
            if own := [each for each in pack.records if (parent / each).is_relative_to(folder)]:
                yield pack, own


def holder(folder: Path) -> tuple[Pack, str] | None:
    """The pack that has the run of this folder, and the run's name there; None if there is none."""
    for pack, runs in around(folder):
        for run in runs:
            if pack.folder / run == folder:
                return pack, run
    return None


def labels_name(folder: str, part: str) -> str:
    """The name of the labels that runs below a folder share."""
    return f"{part}/label" if folder == "." else f"{folder}/{part}/label"


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The run of each line, and what the run itself wrote there."""
    *lines, rest = archives.read_gzip(path).split(b"\n")
    if rest:
        raise ValueError(f"{path} does not end with a whole line: put the file back")
    for number, line in enumerate(lines, 1):
        head = _HEAD.match(line)
        run = json_text.loads(head[1], f"{path}, line {number}") if head else ""
        if head is None or not _is_below(run):
            raise ValueError(f'{path}, line {number} does not begin with its run, {{"run": "..."')
        yield run, b"{" + line[head.end() :]


def _is_below(run: str) -> bool:
    """Whether a run's name is a path that leads nowhere but below its pack."""
    path = PurePosixPath(run)
    return path.as_posix() == run != "." and not path.is_absolute() and ".." not in path.parts
