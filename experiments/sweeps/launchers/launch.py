"""Check a launcher, connect to its cluster, and give it the jobs of a sweep."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.cli import warn
from experiments.runs.run_options import RunOptions
from experiments.sweeps import jobs
from experiments.sweeps.folder import SweepFolder
from experiments.sweeps.launchers import (
    kubernetes,
    kubernetes_flags,
    local,
    ray_cluster,
    ray_flags,
    ray_jobs,
    slurm,
    slurm_flags,
)
from experiments.sweeps.view import View


def require(launcher: str, folder: SweepFolder) -> None:
    """Raise a ValueError if a launcher is not installed, or a flag of it is wrong."""
    match launcher:
        case "slurm":
            slurm.require(slurm_flags.cluster())
        case "ray":
            ray_cluster.require()
            ray_flags.address()
            ray_flags.demand()
        case "kubernetes":
            kubernetes_flags.pods(folder.path)


@contextlib.contextmanager
def cluster(launcher: str, todo: Sequence[jobs.Job]) -> Iterator[Any]:
    """The connected module `ray` for jobs of that launcher, and None for other launchers."""
    if launcher != "ray" or not todo:
        yield None
        return
    with ray_cluster.connected(ray_flags.address()) as ray:
        if shortage := ray_flags.demand().shortage(ray_cluster.machines(ray)):
            if ray_flags.address() == "local":
                raise ValueError(shortage)
            warn(f"{shortage}; jobs wait until another machine joins it")
        yield ray


def launch(
    launcher: str,
    todo: list[jobs.Job],
    folder: SweepFolder,
    view: View,
    machine: Sequence[local.Slot],
    ray: Any,
    how: RunOptions,
) -> bool:
    """Have the jobs done; whether they are done now, or someone does them after this command.

    Args:
      machine: where the local launcher's processes run.
      ray: what `cluster` gives.
    """
    command = functools.partial(jobs.command, how=how)
    match launcher:
        case "print":
            for job in todo:
                print(jobs.shell_command(folder, job, how))
            return False
        case "kubernetes" if todo:
            options = jobs.options(how)
            said = kubernetes.write(todo, folder, kubernetes_flags.pods(folder.path), options)
            print("\n".join(said))
            return False
        case "slurm" if todo:
            if not (todo := _not_running(todo, folder, how)):
                print("all jobs are running already: none is submitted")
                return False
            waits = f"--lock_wait={jobs.LOCK_WAIT}"
            lines = [[*command(folder, job), waits] for job in todo]
            submitted = slurm.submit(
                lines, folder.path / "slurm", slurm_flags.options(), slurm_flags.cluster()
            )
            print(f"submitted {len(submitted)} jobs: {', '.join(job.job_id for job in submitted)}")
            if not slurm_flags.waits():
                print("the same command with --dry_run tells how far they are")
                return False
            with view.shown():
                slurm.watch(submitted, view.update)
        case "ray" if todo:
            demand, retries = ray_flags.demand(), ray_flags.retries()
            with view.shown():
                ray_jobs.launch(todo, folder, ray, demand, retries, view.update, command)
        case _ if todo:
            local.announce(machine, len(todo))
            with view.shown():
                local.launch(todo, folder, machine, view.update, command)
    return True


def _not_running(todo: Sequence[jobs.Job], folder: SweepFolder, how: RunOptions) -> list[jobs.Job]:
    """The jobs with a trial that is to be trained and that no process holds.

    A job that is queued twice would wait for the locks of the first, and take up its devices.
    """
    busy = {*how.final, "running"}
    return [job for job in todo if any(folder.state(trial).status not in busy for trial in job)]
