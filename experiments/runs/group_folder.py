"""The folder with the common checkpoints of the trials of a program, until all have ended.

Its `trials.json` says which trials they are of. If the way to step was found by timing, it also
says this way, with the measured seconds; it then stays, as FOLDER.json, when the folder is deleted.
"""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.settings import RunConfig
from lora_jax.files import json_text
from lora_jax.files.json_text import config_digest
from lora_jax.records import seal
from lora_jax.training.trial_program import Execution

_PROGRAMS = ".programs"


def stepping(execution: str, seconds: Mapping[str, float]) -> str:
    """The line on how trials step; `seconds` are those of a step of all, empty if not timed."""
    if not seconds:
        return f"trials step by {execution}, as chosen before"
    found = ", ".join(f"{name} {1000 * each:.1f}" for name, each in seconds.items())
    return f"trials step by {execution} (ms for a step of all: {found})"


def found_by_timing(trials: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """How each ended group of a folder of trials stepped, if timed, as arguments of `stepping`."""
    for file in sorted(trials.glob(f"{_PROGRAMS}/*.json")):
        found = _opened(file)
        yield found["execution"], found["seconds"]


@dataclasses.dataclass(frozen=True)
class GroupFolder:
    """A folder beside those of the trials, named by a digest of all their configs."""

    path: Path

    @classmethod
    def of(cls, configs: Sequence[RunConfig], folders: Sequence[Path]) -> "GroupFolder":
        """The folder for these trials; `begin` creates it."""
        digests = [config_digest(config.plain) for config in configs]
        name = config_digest({"trials": digests})[:16]
        return cls(folders[0].parent / _PROGRAMS / name)

    @property
    def trials(self) -> list[int]:
        """The numbers of the trials in each checkpoint; empty before `begin`."""
        return self._read().get("trials") or []

    @property
    def has_steps(self) -> bool:
        """Whether a checkpoint has been saved; a process may have been killed before its first."""
        return any(each.name.isdigit() for each in (self.path / "checkpoints").glob("*"))

    def begin(self, numbers: Sequence[int]) -> None:
        """Note the numbers of the trials that each checkpoint will hold."""
        self._write({**self._read(), "trials": list(numbers)})

    @property
    def execution(self) -> Execution | None:
        """How the trials stepped in an earlier process; the same way gives the same bits."""
        return self._read().get("execution")

    def settle(self, execution: Execution, seconds: Mapping[str, float]) -> None:
        """Note how the trials step, and the measured seconds of a step."""
        self._write({**self._read(), "execution": execution, "seconds": dict(seconds)})

    def remove(self) -> None:
        """Delete the checkpoints, which no trial needs any more."""
        if not self.path.exists():
            return
        if self.execution is not None:
            self._file.replace(self.path.with_suffix(".json"))
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def _file(self) -> Path:
        return self.path / "trials.json"

    def _read(self) -> dict[str, Any]:
        return _opened(self._file) if self._file.exists() else {}

    def _write(self, values: Mapping[str, Any]) -> None:
        seal.write(self._file, values)


def _opened(path: Path) -> dict[str, Any]:
    """The values in such a file; one of an earlier version has no seal.

    Raises:
      ValueError: it was changed after it was written.
    """
    try:
        values, found = seal.opened(json_text.read_object(path))
        seal.require_unchanged(values, found)
    except ValueError as error:
        whole = path if path.parent.name == _PROGRAMS else path.parent  # with its checkpoints
        raise ValueError(f"{path} is damaged: {error}; delete {whole} to start over") from None
    return values
