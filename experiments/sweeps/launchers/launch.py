"""The launchers of `experiments.sweep`: check one, connect to its cluster, give it the jobs.

A sweep that a signal ends prints one line, and leaves no process behind.
"""

import contextlib
import functools
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from experiments.cli import warn
from experiments.runs.interruption import TEMPORARY_FAILURE
from experiments.runs.run_options import RunOptions
from experiments.sweeps import jobs
from experiments.sweeps.folder import SweepFolder
from experiments.sweeps.launchers import local, ray, slurm
from experiments.sweeps.view import View

LAUNCHERS = ("local", "slurm", "ray", "print")


def require_own_flags(launcher: str, values: flags.FlagValues) -> None:
    """Raise a ValueError if a flag was given that only another launcher reads.

    A launcher's own flags begin with its name: `--slurm`, `--slurm_wait`.
    """
    for name in values:
        owner = name.partition("_")[0]
        if owner in LAUNCHERS and owner != launcher and values[name].present:
            raise ValueError(
                f"--{name} goes with --launcher={owner}, and --launcher={launcher} would ignore it"
            )


def require(launcher: str) -> None:
    """Raise a ValueError if a launcher is not installed, or a flag of it is wrong."""
    match launcher:
        case "slurm":
            slurm.require(slurm.CLUSTER.value)
            slurm.options()
        case "ray":
            ray.require()
            ray.demand()


@contextlib.contextmanager
def cluster(launcher: str, todo: Sequence[jobs.Job]) -> Iterator[Any]:
    """The connected module `ray` for jobs of that launcher, and None for other launchers."""
    if launcher != "ray" or not todo:
        yield None
        return
    with ray.connected(ray.address()) as connected:
        if shortage := ray.shortage(ray.demand(), ray.machines(connected)):
            if ray.address() == "local":
                raise ValueError(shortage)
            warn(f"{shortage}; jobs wait until another machine joins it")
        yield connected


def launch(
    launcher: str,
    todo: list[jobs.Job],
    folder: SweepFolder,
    view: View,
    machine: Sequence[local.Slot],
    connected: Any,
    how: RunOptions,
) -> bool:
    """Have the jobs done; whether they are done now, or someone does them after this command.

    Args:
      machine: where the local launcher's processes run.
      connected: what `cluster` gives.
    """
    command = functools.partial(jobs.command, how=how)
    match launcher:
        case "print":
            for job in todo:
                print(jobs.shell_command(folder, job, how))
            return False
        case "slurm" if todo:
            # A job that is queued twice would wait for the locks of the first, and keep devices.
            busy = {*how.final, "running"}
            todo = [
                job for job in todo if any(folder.state(each).status not in busy for each in job)
            ]
            if not todo:
                print("all jobs are running already: none is submitted")
                return False
            waits = f"--lock_wait={jobs.LOCK_WAIT}"
            lines = [[*command(folder, job), waits] for job in todo]
            submitted = slurm.submit(
                lines, folder.path / "slurm", slurm.options(), slurm.CLUSTER.value
            )
            print(f"submitted {len(submitted)} jobs: {', '.join(job.job_id for job in submitted)}")
            if not slurm.WAIT.value:
                print("the same command with --dry_run tells how far they are")
                return False
            with view.shown():
                slurm.watch(submitted, view.update)
        case "ray" if todo:
            with view.shown():
                retries = int(ray.RETRIES.value or 0)
                ray.launch(todo, folder, connected, ray.demand(), retries, view.update, command)
        case _ if todo:
            local.announce(machine, len(todo))
            with view.shown():
                local.launch(todo, folder, machine, view.update, command)
    return True


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the program as Ctrl-C does: with a line, and no process left.

    After SIGTERM, by which schedulers announce that they will end a process, workers save first. A
    second SIGTERM does not cut that short.
    """

    def stop(number: int, frame: object) -> None:
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise local.Terminated if number == signal.SIGTERM else KeyboardInterrupt

    for each in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(each, stop)
    try:
        yield
    except KeyboardInterrupt as stopped:
        print("stopped; the same command goes on from here")
        sys.exit(TEMPORARY_FAILURE if isinstance(stopped, local.Terminated) else 130)
