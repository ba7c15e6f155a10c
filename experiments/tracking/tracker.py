"""What a tracker implements: it gets a run's metrics, step by step, in a thread of its own."""

import abc
import dataclasses
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

Status = Literal["completed", "stopped", "diverged", "failed", "preempted", "killed"]
"""How a run ended. A `stopped` one lost in a search; a `preempted` one has saved its step; a
`killed` one ended without a word."""
DONE: tuple[Status, ...] = ("completed", "stopped")
"""The statuses of runs in which nothing went wrong."""
NO_IMAGES: Mapping[str, Path] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run."""

    name: str
    """The path of the run's folder in its sweep or study; otherwise the folder's name."""
    group: str
    """The name of the sweep's or study's folder; empty for a run by itself."""
    project: str
    """The config's `experiment`, without characters that a tracker may refuse."""
    config: dict[str, Any]
    folder: Path
    """For the tracker's files of this run; it exists."""
    store: Path
    """For files that all runs of the group share; it exists. Other processes may use it as well."""
    restored: int = 0
    """The step from which the run goes on; 0 if it begins."""

    @property
    def settings(self) -> dict[str, Any]:
        """The config without nesting: values by dotted path."""
        return dict(_leaves(self.config, ""))

    @property
    def identity(self) -> str:
        """Sixteen hexadecimal digits that no other run has; they stay when a run goes on.

        A file without them, such as an empty one after a full disk, is written anew: runs with one
        identity would be one run in a tracker.
        """
        path = self.folder / "identity"
        known = path.read_text(encoding="ascii", errors="replace") if path.exists() else ""
        if re.fullmatch("[0-9a-f]{16}", known):
            return known
        made, new = uuid.uuid4().hex[:16], path.with_suffix(".new")
        new.write_text(made, encoding="ascii")
        new.replace(path)
        return made


class Tracker(abc.ABC):
    """A tracker's run: it begins, or goes on, when the object is made.

    An error of any method ends the tracking of that run, with one warning line. The run trains on.
    A module that `--track` names has one subclass. Import a library in `__init__`: the module is
    imported before anything is trained, to look at `package`.
    """

    package: ClassVar[str] = ""
    """The package that must be installed, as it is imported."""
    forgets: ClassVar[bool] = False
    """Whether it drops the steps after `run.restored`; others get no step of a scalar again."""

    def __init__(self, run: TrackedRun):
        """Begin a run, or go on with the one of `run.identity`."""
        self.run = run

    @property
    @abc.abstractmethod
    def where(self) -> str:
        """The run's URL, or the folder or file that has it; `record.json` names it."""

    @abc.abstractmethod
    def write(
        self, step: int, scalars: Mapping[str, float], images: Mapping[str, Path] = NO_IMAGES
    ) -> None:
        """Add the values of a step.

        Args:
          scalars: all of a step's row, by name; they may be NaN or infinite.
          images: PNG files, by name.
        """

    @abc.abstractmethod
    def end(self, status: Status) -> None:
        """Write everything out, with the run's status; nothing is called after it."""


def plain_name(text: str) -> str:
    """A text with `-` in place of what is neither a letter nor a digit, `_` or `.`."""
    return re.sub(r"[^\w.-]+", "-", text)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif value is not None:
        yield path, value
