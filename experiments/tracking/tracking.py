"""Copy the metrics of the trials of a program to the trackers that `--track` names.

Each tracker has a child process (`experiments.tracking.child`), for which nothing here waits until
the end.
"""

import contextlib
import dataclasses
import functools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.cli import warn
from experiments.tracking.tracker import NO_IMAGES, Status, plain_name
from lora_jax.files.json_text import plain
from lora_jax.records.metrics_log import Metrics

FOLDER = "tracking"
"""The trackers' folder in that of a run, and in that of a sweep or study."""
WAIT = 60.0
"""The most seconds that the end of a run waits for a tracker."""
SHORT_WAIT = 10.0
"""The same for a run that was asked to end: a scheduler soon kills it."""
LAST_BREATH = 1.0
"""The most seconds that are left to a child process that has closed its pipe or was killed."""


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


class TrackerProcess:
    """A tracker's child process. A thread writes orders to it, and another one hears its answers.

    If the tracker fails in any way, a warning line says so, once; the run goes on without it.

    Args:
      name: the tracker's name.
      log: the file for what the child prints.
    """

    def __init__(self, name: str, log: Path):
        self.name, self._log = name, log
        self._orders: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._where: dict[int, str | None] = {}
        self._failed: set[int] = set()
        self._finished = self._warned = self._over = False
        self._news = threading.Condition()
        self._ear = threading.Thread(target=self._hear, daemon=True)
        try:
            self._child = _start(name, log)
        except Exception as error:
            self._over = True
            self._warn(str(error))
        else:
            threading.Thread(target=self._speak, daemon=True).start()
            self._ear.start()

    def send(self, number: int, **order: Any) -> None:
        """Send an order about the run with this number."""
        if not self._over:
            self._orders.put(json.dumps({"number": number, **order}).encode() + b"\n")

    def look(self) -> None:
        """Let the child look for new lines, as it does after any other order that still waits."""
        if not self._over and self._orders.empty():
            self._orders.put(b"{}\n")

    def where(self, number: int, until: float) -> str | None:
        """Where the tracker has a run, once it has opened it; None if it has failed.

        Args:
          until: the time, by `time.monotonic`, when a child that has not answered is ended.
        """

        def known() -> bool:
            return self._over or number in self._where or number in self._failed

        with self._news:
            in_time = self._news.wait_for(known, max(0.0, until - time.monotonic()))
        if not in_time:
            self._end_late()
        return self._where.get(number)

    def finish(self) -> None:
        """Say that no more orders come."""
        self._finished = True
        self._orders.put(None)

    def close(self, until: float) -> None:
        """Let the child end by itself, after `finish`; end it at a time (see `where`)."""
        if self._ear.ident is not None:
            self._ear.join(max(0.0, until - time.monotonic()))
            if self._ear.is_alive():
                self._end_late()
                self._ear.join(2 * LAST_BREATH)

    def _speak(self) -> None:
        assert self._child.stdin is not None
        with contextlib.suppress(OSError), self._child.stdin as orders:  # it may have ended
            for order in iter(self._orders.get, None):
                orders.write(order)
                orders.flush()

    def _hear(self) -> None:
        assert self._child.stdout is not None
        try:
            with self._child.stdout as answers:
                for line in answers:
                    self._note(**json.loads(line))
            code = self._child.wait(LAST_BREATH)
            how = f"code {code}" if code >= 0 else signal.Signals(-code).name
            why = f"its process {'ended with' if code >= 0 else 'was ended by'} {how}"
            why = "" if self._finished and code == 0 else why
        except subprocess.TimeoutExpired:
            why = "its process has closed its pipe"
        except Exception as error:  # no error here may end the run
            why = f"{type(error).__name__}: {error}"
        self._end(why)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a file system may hold it
            self._child.wait(LAST_BREATH)

    def _note(self, number: int, where: Any = None, failed: str = "") -> None:
        """Note an answer; a place is of whatever kind, and a record's text must be in UTF-8."""
        if failed:
            self._warn(failed)
        with self._news:
            if failed:
                self._failed.add(number)
            else:
                text = None if where is None else str(where).encode(errors="replace").decode()
                self._where[number] = text
            self._news.notify_all()

    def _end_late(self) -> None:
        self._end("it was too slow at the end of the run, and was ended")

    def _end(self, why: str) -> None:
        """End the child and all that it has started; say why, unless that is empty."""
        if why:
            self._warn(why)
        with contextlib.suppress(OSError):  # they have ended already
            os.killpg(self._child.pid, signal.SIGKILL)
        self._orders.put(None)
        with self._news:
            self._over = True
            self._news.notify_all()

    def _warn(self, why: str) -> None:
        with self._news:
            first, self._warned = not self._warned, True
        if first:
            said = " ".join(why.split())
            said = said if len(said) < 200 else f"{said[:200]}..."
            warn(
                f"--track={self.name}: {said}; the run goes on without it, and metrics.jsonl has "
                f"all (see {self._log})"
            )


def _start(name: str, log: Path) -> "subprocess.Popen[bytes]":
    log.parent.mkdir(parents=True, exist_ok=True)
    command = "from experiments.tracking.child import main; main()"
    with log.open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", command, name],  # not from the working folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            # The child finds the modules that this process finds.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
            start_new_session=True,  # Ctrl-C reaches the run, which ends the child
        )


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
        for each in self._processes:  # side by side: one that hangs takes no time from the others
            each.finish()
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
