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
from experiments.tracking.tracker import NO_IMAGES, Status, TrackedRun, Tracker, plain_name
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


class _Row:
    """Gives a tracker the values of each step in one call, and none that it has already.

    A step is written when a later one begins, or with the next image or the end. `last.json` notes
    the last step of each scalar: a run that goes on repeats the steps after its checkpoint. Most
    trackers cannot forget what they have, so for these a step is noted before it is written: one
    in which the process is killed may be missing, and none is there twice.
    """

    def __init__(self, tracker: Tracker):
        self._tracker, self._noted = tracker, tracker.run.folder / "last.json"
        self._last = json.loads(self._noted.read_text()) if self._noted.exists() else {}
        if tracker.forgets:
            self._last = {n: min(step, tracker.run.restored) for n, step in self._last.items()}
        self._step, self._scalars = 0, dict[str, float]()

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
    """The thread of a tracker, which obeys orders about runs, known by their numbers.

    An error ends the tracking of one run. A warning line says so, once.
    """

    def __init__(self, name: str):
        super().__init__(daemon=True)  # one that hangs does not keep the process from ending
        self.tracker = name
        self._orders: queue.SimpleQueue[tuple[int, Callable[[], None]] | None] = queue.SimpleQueue()
        self._places: dict[int, concurrent.futures.Future[str | None]] = {}
        self._rows: dict[int, _Row] = {}
        self._warned = False
        self._too_slow = False
        try:
            self.start()
        except RuntimeError as error:  # the process may have no more threads
            self._too_slow = True
            self.warn(str(error))

    def run(self) -> None:
        for number, act in iter(self._orders.get, None):
            try:
                act()
            except (Exception, SystemExit) as error:
                self._rows.pop(number, None)
                if not self._places[number].done():
                    self._places[number].set_result(None)
                self.warn(f"{type(error).__name__}: {error}")

    def begin(self, number: int, run: TrackedRun, rows: list[dict[str, Any]]) -> None:
        """Begin a run, or go on with it; `rows` of its `metrics.jsonl` are there already."""
        self._places[number] = concurrent.futures.Future()

        def act() -> None:
            for folder in (run.folder, run.store):
                folder.mkdir(parents=True, exist_ok=True)
            tracker = find(self.tracker)(run)
            self._rows[number] = _Row(tracker)
            for row in rows:
                self._rows[number].add(row["step"], {n: x for n, x in row.items() if n != "step"})
            where: Any = tracker.where  # a user's may be a Path, or None before it is known
            text = None if where is None else str(where).encode(errors="replace").decode()
            self._places[number].set_result(text)

        self._orders.put((number, act))

    def send(self, number: int, method: Callable[..., None], *values: Any) -> None:
        """Call a method of `_Row` for a run, unless the tracker has failed with it."""

        def act() -> None:
            if number in self._rows:
                method(self._rows[number], *values)

        self._orders.put((number, act))

    def where(self, number: int, until: float) -> str | None:
        """Where the tracker has a run, once it has opened it; None if it has failed.

        Args:
          until: the time by `time.monotonic` to wait for. One wait in vain is the last.
        """
        try:
            wait = 0.0 if self._too_slow else until - time.monotonic()
            return self._places[number].result(max(0.0, wait))
        except TimeoutError:
            self._too_slow = True
            self.warn("it is too slow to begin the run")
            return None

    def finish(self) -> None:
        """Say that no more orders come."""
        self._orders.put(None)

    def close(self, until: float) -> None:
        """Let the orders be obeyed until a time by `time.monotonic`."""
        if self.ident is None:  # it could not be started
            return
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
        self._begun: set[int] = set()
        names = track.names if enabled and folders else ()
        self._threads = [TrackerThread(name) for name in names]

    def metrics(self, number: int, folder: Path, enabled: bool) -> Metrics:
        """The metrics file of a run, whose lines the trackers get if it is one of theirs."""
        if number not in self._folders or not self._threads:
            return Metrics(folder, enabled)
        add = functools.partial(self._send, number, _Row.add)
        return TrackedMetrics(folder, functools.partial(self._begin, number), add)

    def write(
        self,
        number: int,
        step: int,
        scalars: Mapping[str, float],
        images: Mapping[str, Path] = NO_IMAGES,
    ) -> None:
        """Give the trackers values and images of a run that `metrics.jsonl` does not have."""
        self._send(number, _Row.draw, step, numbers(plain(scalars)), images)

    def where(self, number: int) -> dict[str, str] | None:
        """The URL or folder of a run in each tracker; None without trackers."""
        if number not in self._begun:
            return None
        until = time.monotonic() + WAIT
        found = {each.tracker: each.where(number, until) for each in self._threads}
        return {name: where for name, where in found.items() if where is not None}

    def end(self, number: int, status: Status) -> None:
        """Tell the trackers how a run has ended."""
        self._send(number, _Row.end, status)
        self._begun.discard(number)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        preempted = kind is not None and issubclass(kind, SystemExit)
        failed = kind is not None and issubclass(kind, Exception)
        for number in sorted(self._begun):
            self.end(number, "preempted" if preempted else "failed" if failed else "killed")
        until = time.monotonic() + (SHORT_WAIT if preempted else WAIT)
        for each in self._threads:  # side by side: one that hangs takes no time from the others
            each.finish()
        for each in self._threads:
            each.close(until)

    def _begin(self, number: int, step: int) -> None:
        if number in self._begun:  # the next rung of a halving goes on from the last line
            return
        folder, config = self._folders[number].absolute(), self._configs[number]
        group = self._track.group and self._track.group.absolute()
        root = self._track.root or group or folder.parent
        rows = read_metrics(folder / "metrics.jsonl")
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
            each.begin(number, run, rows)
        self._begun.add(number)

    def _send(self, number: int, method: Callable[..., None], *values: Any) -> None:
        if number in self._begun:
            for each in self._threads:
                each.send(number, method, *values)
