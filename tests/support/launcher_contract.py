"""What every launcher keeps: each trial of its jobs is begun once, and leaves its state."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import fake_records
import quickstart_sweep

from experiments.sweeps import jobs, trials
from experiments.sweeps.folder import SweepFolder

STUB = Path(__file__).with_name("stub_worker.py")

Command = Callable[[SweepFolder, jobs.Job], list[str]]
Launch = Callable[[Sequence[jobs.Job], SweepFolder, Command], None]
"""Trains jobs, each by a command that is given, and returns when all have ended."""


def sweep(tmp_path: Path, *specs: str) -> tuple[SweepFolder, list[trials.Trial]]:
    """The folder of a sweep, and its trials, of which none has begun; the stub has their records.

    Args:
      specs: values of seeds.
    """
    folder, found = quickstart_sweep.sweep(tmp_path, *specs)
    for trial in found:
        changes = {"seed": trial.config.seed}
        where = folder.path / "records" / trial.name
        fake_records.write(where, "quickstart", "size=smoke", {}, changes=changes)
    return folder, found


def stub(folder: SweepFolder, job: jobs.Job) -> list[str]:
    """The command of `stub_worker`, for `jobs.command`."""
    line = [sys.executable, str(STUB), f"--workdir={folder.path}"]
    return [*line, *(f"--trial={trial.name}" for trial in job)]


def calls(folder: SweepFolder) -> list[str]:
    """The trials that the stub has trained, in order."""
    path = folder.path / "calls"
    return [json.loads(line)[0] for line in path.read_text().splitlines()]


def check(tmp_path: Path, launch: Launch) -> None:
    """Launch two jobs, of which one has a trial that fails."""
    folder, found = sweep(tmp_path, "config.seed=0,2,3,4")
    launch(jobs.make(found, 2), folder, stub)
    assert sorted(calls(folder)) == ["seed=0", "seed=2", "seed=3", "seed=4"]
    states = [folder.state(trial) for trial in found]
    assert [each.status for each in states] == ["completed", "failed", "completed", "completed"]
    assert states[1].note == "ValueError: so it is"
