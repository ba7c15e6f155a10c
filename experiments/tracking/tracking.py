"""Copy the metrics of the trials of a program to the trackers that `--track` names."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.tracking.tracker import NO_IMAGES, Status, plain_name
from experiments.tracking.tracker_process import TICK, TrackerProcess
from lora_jax.files.json_text import plain
from lora_jax.records.metrics_log import Metrics

FOLDER = "tracking"
"""The trackers' folder in that of a run, and in that of a sweep or study."""
WAIT = 60.0
"""The most seconds that the end of a run waits for a tracker."""
SHORT_WAIT = 10.0
"""The same for a run that was asked to end: a scheduler soon kills it."""


@dataclasses.dataclass(frozen=True)
class Track:
    """The trackers of runs, and what the runs belong to."""

    names: tuple[str, ...] = ()
    group: Path | None = None
    """The folder of the sweep or study; None for a run by itself."""
    root: Path | None = None
    """The folder that names of the group's runs are relative to; by default, `group`."""


NONE = Track()


class TrackedMetrics(Metrics):
    """A run's `metrics.jsonl`, of which others learn that it has grown."""

    def __init__(
        self, workdir: Path, begun: Callable[[int], None], written: Callable[[], None]
    ) -> None:
        self._begun, self._written = begun, written
        super().__init__(workdir)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        super().write(step, values)
        self._written()

    def truncate(self, step: int | None, checksum: int | None = None) -> None:
        """As in `Metrics`; with a step, the run goes on from there, and no line will be dropped."""
        super().truncate(step, checksum)
        if step is not None:
            self._begun(step)


class Tracking(contextlib.AbstractContextManager["Tracking"]):
    """The trackers of the trials of a program, which trials are known to by their numbers.

    Trackers start with the object. A trial that has no end when the context is left is `preempted`
    if a SystemExit leaves it, `failed` if another error does, and otherwise `killed`.

    Args:
      folders: those of the runs to track, by number.
      configs: the runs' plain configs, by number.
      enabled: whether this process writes; in others, nothing happens.
    """

    def __init__(
        self,
        track: Track,
        folders: Mapping[int, Path],
        configs: Mapping[int, Mapping[str, Any]],
        enabled: bool = True,
    ) -> None:
        self._track, self._folders, self._configs = track, folders, configs
        self._begun: set[int] = set()
        self._processes: list[TrackerProcess] = []
        if enabled and folders:
            logs = next(iter(folders.values())) / FOLDER
            self._processes = [TrackerProcess(each, logs / f"{each}.log") for each in track.names]

    def metrics(self, number: int, folder: Path, enabled: bool) -> Metrics:
        """The metrics file of a run, whose lines the trackers get if it is one of theirs."""
        if number not in self._folders or not self._processes:
            return Metrics(folder, enabled)
        return TrackedMetrics(folder, functools.partial(self._begin, number), self._look)

    def write(
        self,
        number: int,
        step: int,
        scalars: Mapping[str, float],
        images: Mapping[str, Path] = NO_IMAGES,
    ) -> None:
        """Give the trackers values and images of a run that `metrics.jsonl` does not have."""
        if scalars or images:
            paths = {name: str(path) for name, path in images.items()}
            self._send(number, step=step, scalars=plain(scalars), images=paths)

    def where(self, number: int) -> dict[str, str] | None:
        """The URL or folder of a run in each tracker; None without trackers."""
        if number not in self._begun:
            return None
        until = time.monotonic() + WAIT
        found = {each.name: each.where(number, until) for each in self._processes}
        return {name: where for name, where in found.items() if where is not None}

    def end(self, number: int, status: Status) -> None:
        """Tell the trackers how a run has ended."""
        self._send(number, end=status)
        self._begun.discard(number)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        preempted = kind is not None and issubclass(kind, SystemExit)
        failed = kind is not None and issubclass(kind, Exception)
        for number in sorted(self._begun):
            self.end(number, "preempted" if preempted else "failed" if failed else "killed")
        until = time.monotonic() + (SHORT_WAIT if preempted else WAIT)
        waiting = self._processes  # side by side: one that hangs takes no time from the others
        while (waiting := [each for each in waiting if not each.finish()]) and (
            time.monotonic() < until
        ):
            time.sleep(TICK)
        for each in self._processes:
            each.close(until)

    def _begin(self, number: int, step: int) -> None:
        if number in self._begun:  # the next rung of a halving goes on from the last line
            return
        folder, config = self._folders[number], self._configs[number]
        own, group = folder / FOLDER, self._track.group
        root = self._track.root or group or folder.absolute().parent
        shared = own if group is None else group / FOLDER
        self._begun.add(number)
        run = {
            "name": str(folder.absolute().relative_to(root.absolute())),
            "group": "" if group is None else group.absolute().name,
            "project": plain_name(str(config["experiment"])),
            "config": plain(config),
            "restored": step,
        }
        for each in self._processes:
            places = {"folder": str(own / each.name), "store": str(shared / each.name)}
            order = {"open": run | places, "metrics": str(folder / "metrics.jsonl")}
            each.send(number, **order)

    def _look(self) -> None:
        for each in self._processes:
            each.look()

    def _send(self, number: int, **order: Any) -> None:
        if number in self._begun:
            for each in self._processes:
                each.send(number, **order)
