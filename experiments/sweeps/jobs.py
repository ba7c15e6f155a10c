"""Divide trials into jobs for launchers, and train the trials of a job in its process."""

import contextlib
import itertools
import os
import shlex
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.settings import RunConfig
from experiments.command_names import command_line
from experiments.runs.interruption import between_programs
from experiments.runs.run import MISSING, Ended, run_together
from experiments.runs.run_options import USUAL, RunOptions
from experiments.sweeps.folder import LockedError, SweepFolder, lock
from experiments.sweeps.grouping import groups
from experiments.sweeps.trials import Trial
from experiments.tracking.tracking import Track
from lora_jax.messages import count, first_line, require_known

Job = list[Trial]

GRACE = 10.0  # seconds to wait for a lock that a dying process of a killed sweep still holds
LOCK_WAIT = 120
"""The seconds to wait for the locks of a machine that died: as long as NFS keeps them."""


Train = Callable[[Sequence[RunConfig], Sequence[Path], Sequence[str], RunOptions], Sequence[Ended]]
"""Trains trials of one program, given `(configs, folders, names, how)`; returns how each ended."""


def make(trials: Sequence[Trial], size: int | None = None, workers: int = 1) -> list[Job]:
    """Divide trials into jobs, each with trials that share a program.

    Equal arguments give equal jobs, since checkpoints belong to all trials of a job.

    Args:
      size: the most trials in a job; 0 for all of a program.
      workers: without `size`, trials of a program are divided until each worker has a job.
    """
    programs = groups([trial.config for trial in trials])
    parts = [1] * len(programs)
    while size is None and sum(parts) < min(workers, len(trials)):
        largest = [len(each) / pieces for each, pieces in zip(programs, parts, strict=True)]
        parts[largest.index(max(largest))] += 1
    jobs: list[Job] = []
    for numbers, pieces in zip(programs, parts, strict=True):
        ends = [len(numbers) * part // pieces for part in range(pieces + 1)]
        if size:
            ends = [*range(0, len(numbers), size), len(numbers)]
        jobs += [[trials[n] for n in numbers[a:b]] for a, b in itertools.pairwise(ends)]
    return jobs


def no_job(jobs: Sequence[Job], part: tuple[int, int]) -> str:
    """The message for a shard that has no job."""
    of = f"{count(len(jobs), 'job')} of {sum(map(len, jobs))} trials"
    return f"shard {part[0]}/{part[1]} has no job: {of} in all; see --per_job"


def shard(jobs: Sequence[Job], part: tuple[int, int] | None) -> list[Job]:
    """Every n-th job from the i-th on, for a part (i, n); all jobs if `part` is None."""
    return list(jobs) if part is None else list(jobs[part[0] :: part[1]])


def parse_shard(text: str) -> tuple[int, int] | None:
    """Parse `i/n`, such as `0/4` to `3/4`, to (i, n); an empty text gives None.

    Raises:
      ValueError: a text of another form, or i is not below n.
    """
    if not text:
        return None
    first, _, second = text.partition("/")
    digits = text.isascii() and first.isdecimal() and second.isdecimal() and len(text) < 20
    if not (digits and int(first) < int(second)):
        raise ValueError(f"--shard={text}: expected i/n with i from 0 to n-1, such as 0/4")
    return int(first), int(second)


AT_LEAST_ONE = ("cpus", "parallel")
"""Resources of which a job needs some."""


def resources(
    flag: str, items: Sequence[str], names: Mapping[str, str], texts: Sequence[str] = ()
) -> dict[str, Any]:
    """What each job of a launcher gets, from the items of its flag, such as `gpus=1`.

    Args:
      names: the launcher's own name of each key.
      texts: the keys that do not take numbers.

    Raises:
      ValueError: an unknown key, one that is given twice, or no value or number.
    """
    found: dict[str, Any] = {}
    for item in items:
        key, _, value = item.partition("=")
        require_known(key, names, f"--{flag}={item}: no such resource")
        if names[key] in found:
            raise ValueError(f"--{flag}={item}: {key} is given twice")
        if not value:
            raise ValueError(f"--{flag}={item}: expected a value, such as {key}=1")
        if key not in texts:
            least = 1 if key in AT_LEAST_ONE else 0
            if not (value.isascii() and value.isdecimal()) or int(value) < least:
                said = "a whole number" + (" above 0" if least else "")
                raise ValueError(f"--{flag}={item}: expected {said}, such as {key}=1")
        found[names[key]] = value if key in texts else int(value)
    return found


def command(folder: SweepFolder, job: Job, how: RunOptions = USUAL) -> list[str]:
    """The command that trains the trials of a job that have not ended."""
    line = [*command_line("sweeps.worker"), f"--workdir={folder.path.resolve()}"]
    line += [f"--trial={trial.name}" for trial in job]
    line += [f"--execution={how.execution}"] if how.execution else []
    line += ["--retry"] if how.retry else []
    line += [f"--halving={how.halving}"] if how.halving else []
    line += [f"--track={','.join(how.track.names)}"] if how.track.names else []
    return line if how.audit else [*line, "--noaudit"]


def tracked(folder: SweepFolder, names: tuple[str, ...]) -> Track:
    """Trackers in which all trials of a sweep are runs of one group."""
    return Track(names, group=folder.path, root=folder.run(""))


def shell_command(folder: SweepFolder, job: Job, how: RunOptions = USUAL) -> str:
    """The same as a quoted line for a shell, in any folder of this machine."""
    return f"cd {shlex.quote(os.getcwd())} && {shlex.join(command(folder, job, how))}"


def train(
    configs: Sequence[RunConfig], folders: Sequence[Path], names: Sequence[str], how: RunOptions
) -> Sequence[Ended]:
    """Train trials of one program together; a single trial trains as in `experiments.train`."""
    label = names[0] if len(names) == 1 else f"{len(names)} trials"
    return run_together(configs, folders, how, label, say=print)


def work(
    folder: SweepFolder,
    names: Sequence[str],
    how: RunOptions = USUAL,
    train: Train = train,
    wait: float | None = None,
) -> bool:
    """Train trials of a sweep's list, and return whether all of them are completed.

    An error in one trial does not affect the others, unless it ends their common program. Trials
    that another process is training, and trials that have ended, are left alone. Only trials that
    are halved train all together or not at all.

    Args:
      wait: the seconds to wait for the locks of the trials, all in all; None for `GRACE`.

    Raises:
      Interrupted: a SIGTERM came before the last program had trained its trials.
      ValueError: a trial is missing, and they are to be halved; none has begun.
    """
    with contextlib.ExitStack() as stack:
        mine, configs = list[Trial](), list[RunConfig]()
        until = time.monotonic() + (GRACE if wait is None else wait)
        for name in names:
            try:
                left = until - time.monotonic()
                stack.enter_context(lock(folder.lock_file(name), wait=left))
            except LockedError as error:
                if how.halving:  # which takes all of them
                    raise ValueError(MISSING.format(name, error)) from error
                print(f"{name}: {error}")
                continue
            try:
                trial = folder.trial(name)
                configs.append(trial.config)
                mine.append(trial)
            except Exception as error:
                if how.halving:
                    raise ValueError(MISSING.format(name, error)) from error
                _failed(folder, name, error)
        begin = stack.enter_context(between_programs())
        for numbers in groups(configs):
            begin()
            _train(folder, [mine[number] for number in numbers], how, train)
        good = ("completed", "stopped") if how.halving else ("completed",)
        done = [trial for trial in mine if folder.state(trial).status in good]
    return len(done) == len(names)


def _train(folder: SweepFolder, trials: Job, how: RunOptions, train: Train) -> None:
    """Train trials of one program, and note how each ended."""
    done = {each.name for each in trials if folder.state(each).status in how.final}
    if len(done) == len(trials):
        return
    for trial in trials:
        if trial.name not in done:
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
            if trial.name not in done and folder.state(trial).status != "completed":
                _failed(folder, trial.name, result)
        else:
            folder.end(trial.name, result.status, result.note)


def _failed(folder: SweepFolder, name: str, error: Exception) -> None:
    print(f"{name}: {error}")
    folder.end(name, "failed", first_line(error))
