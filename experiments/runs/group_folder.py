"""The folder with the common checkpoints of the trials of a program, until all have ended."""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.settings import RunConfig
from lora_jax.files import json_text
from lora_jax.files.atomic import write_atomically
from lora_jax.files.canonical_json import config_digest, plain
from lora_jax.training.trial_program import Execution


@dataclasses.dataclass(frozen=True)
class GroupFolder:
    """A folder beside those of the trials, named by a digest of all their configs."""

    path: Path

    @classmethod
    def of(cls, configs: Sequence[RunConfig], folders: Sequence[Path]) -> "GroupFolder":
        """The folder for these trials; `begin` creates it."""
        digests = [config_digest(config.plain) for config in configs]
        name = config_digest({"trials": digests})[:16]
        return cls(folders[0].parent / ".programs" / name)

    @property
    def trials(self) -> list[int]:
        """The numbers of the trials in each checkpoint; empty before `begin`."""
        return self._read().get("trials") or []

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
        """Delete the checkpoints, once every trial has its record."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _read(self) -> dict[str, Any]:
        file = self.path / "trials.json"
        return json_text.read_object(file) if file.exists() else {}

    def _write(self, values: Mapping[str, Any]) -> None:
        content = json.dumps(plain(values), indent=2) + "\n"
        write_atomically(self.path / "trials.json", content.encode())
