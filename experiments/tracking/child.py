"""The process of a tracker: it obeys the orders on its standard input, one JSON object a line.

    {"number": 0, "open": {...}, "metrics": "runs/lora/metrics.jsonl"}    follow a run
    {}                                                                   look for new lines
    {"number": 0, "step": 9, "scalars": {...}, "images": {...}}           write these as well
    {"number": 0, "end": "completed"}                                     the run has ended so

Its answers, on standard output, are `{"number": 0, "where": "..."}` when a run is open and
`{"number": 0, "failed": "..."}` when its tracking has ended with an error. When the input ends,
runs without an end were killed. What libraries print goes to standard error, which is a log file.
"""

import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.tracking.tracker import Status, TrackedRun, Tracker
from experiments.tracking.trackers import find

PATIENCE = 60  # seconds that are left after the end of the input, if the tracker hangs then
CHECK = "crc32"  # the key of a line's check (lora_jax.records.seal), which is no metric
NOT_FINITE = ("NaN", "Infinity", "-Infinity")
"""Numbers that JSON lacks, as `metrics.jsonl` has them."""


class FollowedRun:
    """Gives a tracker the rows of a growing `metrics.jsonl`, all lines of a step together.

    A step is written when a later one begins, or with the next image or the end. What the tracker
    has from an earlier process, by its own `last`, is left out; what it lacks is made up for. The
    checks of lines are not looked at: the lines are some moments old.
    """

    def __init__(self, tracker: Tracker, metrics: Path):
        self._tracker = tracker
        self._last = dict(tracker.last())
        self._file, self._rest = metrics.open("rb"), b""
        self._step, self._waiting = 0, dict[str, float]()

    def look(self) -> None:
        """Read lines that were completed since the last call, and write the complete steps."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            row = json.loads(line)
            step = row.pop("step")
            row.pop(CHECK, None)
            if step != self._step:
                self._flush()
            self._step = step
            numbers = (n for n, x in row.items() if x in NOT_FINITE or type(x) in (int, float))
            self._waiting |= {name: float(row[name]) for name in numbers}

    def write(self, step: int, scalars: Mapping[str, float], images: Mapping[str, str]) -> None:
        """Write values and images that are not in the file, after all that is in it."""
        self.look()
        self._flush()
        self._give(step, scalars, {name: Path(path) for name, path in images.items()})

    def end(self, status: Status) -> None:
        with self._file:
            self.look()
            self._flush()
            self._tracker.end(status)

    def _flush(self) -> None:
        self._give(self._step, self._waiting, {})
        self._waiting = {}

    def _give(self, step: int, scalars: Mapping[str, float], images: Mapping[str, Path]) -> None:
        news = {name: x for name, x in scalars.items() if step > self._last.get(name, -1)}
        if news or images:
            self._tracker.write(step, news, images)
            self._last |= dict.fromkeys(news, step)


def main() -> None:
    """Be the process of the tracker that the first argument names."""
    orders, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a library that asks for a login gets no answer
    os.dup2(2, 1)
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # the run's process says when to end, and how
    threading.Thread(target=_end_late, args=(orders.fileno(),), daemon=True).start()

    def answer(**said: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the run's process is gone
            os.write(answers, json.dumps(said).encode() + b"\n")

    whole = (line for line in orders if line.endswith(b"\n"))  # a killed run leaves a torn one
    obey(find(sys.argv[1]), map(json.loads, whole), answer)


def obey(
    kind: type[Tracker], orders: Iterable[dict[str, Any]], answer: Callable[..., None]
) -> None:
    """Obey orders until they end; an error ends the tracking of one run only."""
    runs: dict[int, FollowedRun] = {}

    def attempt(number: int, act: Callable[..., None], *arguments: Any) -> None:
        try:
            act(*arguments)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            runs.pop(number, None)
            answer(number=number, failed=f"{type(error).__name__}: {error}")

    def begin(number: int, values: dict[str, Any], metrics: str) -> None:
        paths = {name: Path(values[name]) for name in ("folder", "store")}
        for path in paths.values():
            path.mkdir(parents=True, exist_ok=True)
        tracker = kind(TrackedRun(**{**values, **paths}))
        runs[number] = FollowedRun(tracker, Path(metrics))
        where: object = tracker.where  # a user's may be a Path, or None before it is known
        answer(number=number, where=None if where is None else str(where))

    def end(number: int, status: Status) -> None:
        runs.pop(number).end(status)

    for order in orders:
        number = order.get("number", -1)
        if "open" in order:
            attempt(number, begin, number, order["open"], order["metrics"])
        elif number in runs and "end" in order:
            attempt(number, end, number, order["end"])
        elif number in runs:
            values = order["step"], order["scalars"], order["images"]
            attempt(number, runs[number].write, *values)
        for each, run in list(runs.items()):
            attempt(each, run.look)
    for number in list(runs):
        attempt(number, end, number, "killed")


def _end_late(descriptor: int) -> None:
    """End all processes of the tracker some time after the pipe's other end is closed."""
    pipe = select.poll()
    pipe.register(descriptor, 0)  # only the other end's closing is reported
    pipe.poll()
    time.sleep(PATIENCE)
    os.killpg(os.getpgrp(), signal.SIGKILL)
