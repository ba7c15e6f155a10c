"""What a launcher gives to one process: trials of one program, and the training of them."""

import contextlib
import dataclasses
import itertools
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from experiments.runs.run import run
from experiments.sweeps.folder import LockedError, SweepFolder, lock
from experiments.sweeps.grouping import groups
from experiments.sweeps.train_group import Ended, run_together
from experiments.sweeps.trials import Trial
from lora_jax.training.trial_program import Execution

Job = list[Trial]

GRACE = 10.0  # seconds that a dying process of a killed sweep may still hold its trial


@dataclasses.dataclass(frozen=True)
class How:
    """How the trials of a job are trained."""

    execution: Execution | None = None
    """Of trials that share a program; None for the one that ends first."""
    retry: bool = False
    """Whether those that diverged are trained again."""
    audit: bool = True
    """Whether the compiled step is compared with NumPy's before it trains."""

    @property
    def left(self) -> Collection[str]:
        """How trials have ended that are left as they are."""
        return ("completed",) if self.retry else ("completed", "diverged")


USUAL = How()
Train = Callable[[Sequence[dict[str, Any]], Sequence[Path], Sequence[str], How], Sequence[Ended]]
"""`(configs, folders, names, how)` of trials of one program; returns what became of each."""


def make(trials: Sequence[Trial], size: int | None = None, workers: int = 1) -> list[Job]:
    """Jobs of trials that share a program. Equal arguments make equal jobs, as checkpoints need.

    Args:
      size: at most so many trials in each; 0 for all of a program.
      workers: without a size, a program's trials are divided until there is a job for each worker.
    """
    if size is not None and size < 0:
        raise ValueError(f"--per_job must be at least 0, got {size}")
    programs = groups([trial.config for trial in trials])
    parts = [1] * len(programs)
    while size is None and sum(parts) < min(workers, len(trials)):
        largest = [len(each) / count for each, count in zip(programs, parts, strict=True)]
        parts[largest.index(max(largest))] += 1
    jobs: list[Job] = []
    for numbers, count in zip(programs, parts, strict=True):
        ends = [len(numbers) * part // count for part in range(count + 1)]
        if size:
            ends = [*range(0, len(numbers), size), len(numbers)]
        jobs += [[trials[n] for n in numbers[a:b]] for a, b in itertools.pairwise(ends)]
    return jobs


def no_job(jobs: Sequence[Job], part: tuple[int, int]) -> str:
    """What is said where a shard of these jobs has none."""
    trials = sum(map(len, jobs))
    one = "1 job" if len(jobs) == 1 else f"{len(jobs)} jobs"
    hint = "; see --per_job" if trials > len(jobs) else ""
    return f"shard {part[0]}/{part[1]} has no job: {one} of {trials} trials in all{hint}"


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
    digits = text.isascii() and first.isdecimal() and second.isdecimal() and len(text) < 20
    if not (digits and int(first) < int(second)):
        raise ValueError(f"--shard={text}: expected i/n with i from 0 to n-1, such as 0/4")
    return int(first), int(second)


def command(folder: SweepFolder, job: Job, how: How = USUAL) -> list[str]:
    """The command that trains a job's trials, those that have not ended."""
    line = [sys.executable, "-m", "experiments.worker", f"--workdir={folder.path.resolve()}"]
    line += [f"--trial={trial.name}" for trial in job]
    line += [f"--execution={how.execution}"] if how.execution else []
    line += ["--retry"] if how.retry else []
    return line if how.audit else [*line, "--noaudit"]


def train(
    configs: Sequence[dict[str, Any]], folders: Sequence[Path], names: Sequence[str], how: How
) -> Sequence[Ended]:
    """Train trials of one program: together, or the only one as `experiments.train` does."""
    if len(configs) == 1:
        return [run(configs[0], folders[0], names[0], say=print, audit=how.audit)]
    label = f"{len(configs)} trials"
    return run_together(
        configs, folders, label, how.execution, how.left, say=print, audit=how.audit
    )


def work(folder: SweepFolder, names: Sequence[str], how: How = USUAL, train: Train = train) -> bool:
    """Train trials of a sweep's list; whether all of them are completed.

    What ends one of them, others do not notice, unless it ends their common program. A trial that
    another process works on is left to it, and one that has ended as it is.
    """
    with contextlib.ExitStack() as stack:
        mine: list[Trial] = []
        for name in names:
            try:
                stack.enter_context(lock(folder.lock(name), wait=GRACE))
            except LockedError as error:
                print(f"{name}: {error}")
                continue
            try:
                mine += folder.trials([name])
            except Exception as error:
                _failed(folder, name, error)
        for numbers in groups([trial.config for trial in mine]):
            _train(folder, [mine[number] for number in numbers], how, train)
        done = [trial for trial in mine if folder.outcome(trial).status == "completed"]
    return len(done) == len(names)


def _train(folder: SweepFolder, trials: Job, how: How, train: Train) -> None:
    """Train trials of one program, and note how each of them ended."""
    left = {each.name for each in trials if folder.outcome(each).status in how.left}
    if len(left) == len(trials):
        return
    for trial in trials:
        if trial.name not in left:
            folder.begin(trial.name)
    folders = [folder.run(trial.name) for trial in trials]
    names = [trial.name for trial in trials]
    try:
        ended = train([trial.config for trial in trials], folders, names, how)
    except Exception as error:
        traceback.print_exc()
        ended = [error] * len(trials)
    for trial, result in zip(trials, ended, strict=True):
        if isinstance(result, Exception):
            if trial.name not in left and folder.outcome(trial).status != "completed":
                _failed(folder, trial.name, result)
        else:
            folder.end(trial.name, result.status, result.note)


def _failed(folder: SweepFolder, name: str, error: Exception) -> None:
    print(f"{name}: {error}")
    folder.end(name, "failed", f"{type(error).__name__}: {error}".splitlines()[0])
