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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from experiments.tracking.find import find
from experiments.tracking.followed_run import FollowedRun
from experiments.tracking.tracker import Status, TrackedRun, Tracker

Order = dict[str, Any]
Answer = Callable[..., None]
PATIENCE = 60  # seconds that are left after the end of the input, if the tracker hangs then


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


def obey(kind: type[Tracker], orders: Iterable[Order], answer: Answer) -> None:
    """Obey orders until they end; an error ends the tracking of one run only."""
    runs: dict[int, FollowedRun] = {}

    def attempt(number: int, act: Callable[..., None], *arguments: Any) -> None:
        try:
            act(*arguments)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            runs.pop(number, None)
            answer(number=number, failed=f"{type(error).__name__}: {error}")

    def begin(number: int, order: Order) -> None:
        values = order["open"]
        paths = {name: Path(values[name]) for name in ("folder", "store")}
        for path in paths.values():
            path.mkdir(parents=True, exist_ok=True)
        tracker = kind(TrackedRun(**{**values, **paths}))
        runs[number] = FollowedRun(tracker, Path(order["metrics"]))
        where: object = tracker.where  # a user's may be a Path, or None before it is known
        answer(number=number, where=None if where is None else str(where))

    def write(number: int, order: Order) -> None:
        images = {name: Path(path) for name, path in order["images"].items()}
        runs[number].write(order["step"], order["scalars"], images)

    def end(number: int, status: Status) -> None:
        with runs.pop(number) as run:
            run.end(status)

    for order in orders:
        number = order.get("number", -1)
        if "open" in order:
            attempt(number, begin, number, order)
        elif number in runs and "end" in order:
            attempt(number, end, number, order["end"])
        elif number in runs:
            attempt(number, write, number, order)
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
