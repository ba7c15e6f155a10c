"""What a launcher gives to one process: a list of trials, and the training of them."""

import contextlib
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.run import run
from experiments.sweep_folder import LockedError, SweepFolder, lock
from experiments.trials import Trial
from lora_jax import records

Job = list[Trial]
Run = Callable[[dict[str, Any], Path, str], records.Record]

GRACE = 10.0  # seconds that a dying process of a killed sweep may still hold its trial


def make(trials: Sequence[Trial], size: int) -> list[Job]:
    """Jobs of at most so many trials, in order."""
    if size < 1:
        raise ValueError(f"--per_job must be positive, got {size}")
    return [list(trials[start : start + size]) for start in range(0, len(trials), size)]


def shard(jobs: Sequence[Job], part: tuple[int, int] | None) -> list[Job]:
    """Every n-th job from the i-th on, for a part (i, n); all of them without."""
    return list(jobs) if part is None else list(jobs[part[0] :: part[1]])


def parse_shard(text: str) -> tuple[int, int] | None:
    """`0/4` to `3/4`, as (i, n); None of nothing.

    Raises:
      ValueError: another text, or a part that is not there.
    """
    if not text:
        return None
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise ValueError(f"--shard={text}: expected i/n with i from 0 to n-1, such as 0/4")
    return int(first), int(second)


def command(folder: SweepFolder, job: Job) -> list[str]:
    """The command that trains a job's trials, those that are not completed."""
    names = [f"--trial={trial.name}" for trial in job]
    line = [sys.executable, "-m", "experiments.worker", f"--workdir={folder.path.resolve()}"]
    return [*line, *names]


def work(folder: SweepFolder, names: Sequence[str], run: Run = run) -> bool:
    """Train trials of a sweep's list, one after another; whether all of them are completed.

    What ends one of them, others do not notice. A trial that another process works on is left to
    it, and a completed one as it is.
    """
    good = True
    for name in names:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock(folder.lock(name), wait=GRACE))
            except LockedError as error:
                print(f"{name}: {error}")
                good = False
                continue
            good &= _train(folder, name, run)
    return good


def _train(folder: SweepFolder, name: str, run: Run) -> bool:
    """Train one trial and note how it ended."""
    folder.begin(name)
    try:
        (trial,) = folder.trials([name])
        record = run(trial.config, folder.run(name), name)
    except Exception as error:
        traceback.print_exc()
        folder.end(name, "failed", f"{type(error).__name__}: {error}".splitlines()[0])
        return False
    folder.end(name, record.status, record.note)
    return record.status == "completed"
