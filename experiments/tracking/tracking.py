"""Copy the metrics of the trials of a program to the trackers that `--track` names.

Each tracker has a thread, for which nothing here waits until the end of a run. No error of a
tracker leaves its thread, so none ends a run.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.cli import warn
from experiments.tracking.tracker import NO_IMAGES, Status, TrackedRun, plain_name
from experiments.tracking.trackers import find
from lora_jax.files.atomic import write_atomically
from lora_jax.files.json_text import numbers, plain
from lora_jax.records.metrics_log import Metrics, read_metrics

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
    """A run's `metrics.jsonl`, whose lines others get as well."""

    def __init__(
        self,
        workdir: Path,
        begun: Callable[[int], None],
        written: Callable[[int, Mapping[str, Any]], None],
    ) -> None:
        self._begun, self._written = begun, written
        super().__init__(workdir)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        super().write(step, values)
        self._written(step, numbers(plain(values)))

    def truncate(self, step: int | None, checksum: int | None = None) -> None:
        """As in `Metrics`; with a step, the run goes on from there, and no line will be dropped."""
        super().truncate(step, checksum)
        if step is not None:
            self._begun(step)


class TrackerRun:
    """A run in one tracker, which gets the values of each step in one call, and none twice.

    All methods are called in the tracker's thread. A step is written when a later one begins, or
    with the next image or the end. `last.json` notes the last step of each scalar: a run that goes
    on repeats the steps after its checkpoint. Most trackers cannot forget what they have, so for
    these a step is noted before it is written: one in which the process is killed may be missing,
    and none is there twice.
    """

    def __init__(self, kind: str, run: TrackedRun) -> None:
        self._kind, self._run = kind, run
        self._noted = run.folder / "last.json"
        self._last, self._scalars = dict[str, int](), dict[str, float]()
        self._step = 0
        self.where: concurrent.futures.Future[str | None] = concurrent.futures.Future()
        """Where the tracker has the run; None if it has failed to begin it."""
        self.failed = False

    def begin(self, rows: list[dict[str, Any]]) -> None:
        """Begin the run, or go on with it; `rows` of its `metrics.jsonl` are there already."""
        for folder in (self._run.folder, self._run.store):
            folder.mkdir(parents=True, exist_ok=True)
        self._tracker = tracker = find(self._kind)(self._run)
        if self._noted.exists():
            self._last = json.loads(self._noted.read_text())
        if tracker.forgets:
            self._last = {n: min(step, self._run.restored) for n, step in self._last.items()}
        for row in rows:
            self.add(row["step"], {n: x for n, x in row.items() if n != "step"})
        where: Any = tracker.where  # a user's may be a Path, or None before it is known
        text = None if where is None else str(where).encode(errors="replace").decode()
        self.where.set_result(text)

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        if step != self._step:
            self.write()
        self._step = step
        for name, value in values.items():
            if type(value) in (int, float) and step > self._last.get(name, -1):
                self._scalars[name] = float(value)

    def write(self, images: Mapping[str, Path] = NO_IMAGES) -> None:
        if self._scalars or images:
            self._last |= dict.fromkeys(self._scalars, self._step)
            if not self._tracker.forgets:
                self._note()
            self._tracker.write(self._step, self._scalars, images)
            if self._tracker.forgets:
                self._note()
            self._scalars = {}

    def _note(self) -> None:
        write_atomically(self._noted, json.dumps(self._last).encode())

    def draw(self, step: int, scalars: Mapping[str, Any], images: Mapping[str, Path]) -> None:
        self.write()
        self.add(step, scalars)
        self.write(images)

    def end(self, status: Status) -> None:
        self.write()
        self._tracker.end(status)


class TrackerThread(threading.Thread):
    """The thread of a tracker, which calls methods of its runs.

    An error ends the tracking of one run. A warning line says so, once.
    """

    def __init__(self, name: str):
        super().__init__(daemon=True)  # one that hangs does not keep the process from ending
        self.tracker = name
        self._orders = queue.SimpleQueue[tuple[TrackerRun, Callable[..., None], Any] | None]()
        self._warned = self._too_slow = False
        self.start()

    def run(self) -> None:
        for run, method, values in iter(self._orders.get, None):
            try:
                if not run.failed:
                    method(run, *values)
            except (Exception, SystemExit) as error:
                run.failed = True
                if not run.where.done():
                    run.where.set_result(None)
                self.warn(f"{type(error).__name__}: {error}")

    def order(self, run: TrackerRun, method: Callable[..., None], *values: Any) -> None:
        """Call a method of a run, unless the tracker has failed with it."""
        self._orders.put((run, method, values))

    def where(self, run: TrackerRun, until: float) -> str | None:
        """Where the tracker has a run, once it has opened it; None if it has failed.

        Args:
          until: the time by `time.monotonic` to wait for. One wait in vain is the last.
        """
        try:
            wait = 0.0 if self._too_slow else until - time.monotonic()
            return run.where.result(max(0.0, wait))
        except TimeoutError:
            self._too_slow = True
            self.warn("it is too slow to begin the run")
            return None

    def finish(self) -> None:
        """Say that no more orders come."""
        self._orders.put(None)

    def close(self, until: float) -> None:
        """Let the orders be obeyed until a time by `time.monotonic`."""
        self.join(max(0.0, until - time.monotonic()))
        if self.is_alive():
            self.warn("it was too slow at the end of the run, and was left")

    def warn(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            said = " ".join(why.split())[:200]
            warn(
                f"--track={self.tracker}: {said}; the run goes on without it, and metrics.jsonl "
                "has all"
            )


class Tracking(contextlib.AbstractContextManager["Tracking"]):
    """The trackers of the trials of a program, which trials are known to by their numbers.

    A trial that has no end when the context is left is `preempted` if a SystemExit leaves it,
    `failed` if another error does, and otherwise `killed`.

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
        self._runs: dict[int, list[tuple[TrackerThread, TrackerRun]]] = {}
        names = track.names if enabled and folders else ()
        self._threads = [TrackerThread(name) for name in names]

    def metrics(self, number: int, folder: Path, enabled: bool) -> Metrics:
        """The metrics file of a run, whose lines the trackers get if it is one of theirs."""
        if number not in self._folders or not self._threads:
            return Metrics(folder, enabled)
        add = functools.partial(self._send, number, TrackerRun.add)
        return TrackedMetrics(folder, functools.partial(self._begin, number), add)

    def write(
        self,
        number: int,
        step: int,
        scalars: Mapping[str, float],
        images: Mapping[str, Path] = NO_IMAGES,
    ) -> None:
        """Give the trackers values and images of a run that `metrics.jsonl` does not have."""
        self._send(number, TrackerRun.draw, step, numbers(plain(scalars)), images)

    def where(self, number: int) -> dict[str, str] | None:
        """The URL or folder of a run in each tracker; None without trackers."""
        if number not in self._runs:
            return None
        until = time.monotonic() + WAIT
        found = {each.tracker: each.where(run, until) for each, run in self._runs[number]}
        return {name: where for name, where in found.items() if where is not None}

    def end(self, number: int, status: Status) -> None:
        """Tell the trackers how a run has ended."""
        self._send(number, TrackerRun.end, status)
        self._runs.pop(number, None)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        preempted = kind is not None and issubclass(kind, SystemExit)
        failed = kind is not None and issubclass(kind, Exception)
        for number in sorted(self._runs):
            self.end(number, "preempted" if preempted else "failed" if failed else "killed")
        until = time.monotonic() + (SHORT_WAIT if preempted else WAIT)
        for each in self._threads:  # side by side: one that hangs takes no time from the others
            each.finish()
        for each in self._threads:
            each.close(until)

    def _begin(self, number: int, step: int) -> None:
        if number in self._runs:  # the next rung of a halving goes on from the last line
            return
        folder, config = self._folders[number].absolute(), self._configs[number]
        group = self._track.group and self._track.group.absolute()
        root = self._track.root or group or folder.parent
        rows = read_metrics(folder / "metrics.jsonl")
        self._runs[number] = []
        for each in self._threads:
            run = TrackedRun(
                name=str(folder.relative_to(root.absolute())),
                group=group.name if group else "",
                project=plain_name(str(config["experiment"])),
                config=plain(config),
                folder=self._folders[number] / FOLDER / each.tracker,
                store=(self._track.group or self._folders[number]) / FOLDER / each.tracker,
                restored=step,
            )
            self._runs[number].append((each, TrackerRun(each.tracker, run)))
        self._send(number, TrackerRun.begin, rows)

    def _send(self, number: int, method: Callable[..., None], *values: Any) -> None:
        for thread, run in self._runs.get(number, ()):
            thread.order(run, method, *values)
