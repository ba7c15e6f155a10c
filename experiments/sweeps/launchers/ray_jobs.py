"""`--launcher=ray`: run the jobs of a sweep as Ray tasks, which end with this process."""

import dataclasses
import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

from experiments.runs.interruption import TEMPORARY_FAILURE
from experiments.sweeps import jobs
from experiments.sweeps.folder import SweepFolder
from experiments.sweeps.launchers import local, ray_task
from experiments.sweeps.launchers.ray_cluster import Demand

_TICK = 0.5  # seconds between looks at the tasks


@dataclasses.dataclass(frozen=True)
class _Attempt:
    job: jobs.Job
    number: int


@dataclasses.dataclass(frozen=True)
class _End:
    """How a task ended: with its process, or with an error of Ray and code None."""

    process: int
    code: int | None
    said: str = ""


def launch(
    todo: Sequence[jobs.Job],
    folder: SweepFolder,
    ray: Any,
    demand: Demand,
    retries: int,
    watch: Callable[[], None],
    command: Callable[[SweepFolder, jobs.Job], list[str]] = jobs.command,
) -> None:
    """Run all jobs, as many at a time as the cluster has room for, and return when all have ended.

    If a job's process is killed, or dies with its machine, the job begins again, on any machine,
    and goes on from its checkpoint. After the last retry, the trials that it was training are noted
    as killed, and the others get a new process. A job that saved its state after SIGTERM, as when
    its machine is to end, always begins again.

    When this function ends with an error, it ends the tasks too: with `local.Terminated` so that
    they save, otherwise at once.

    Args:
      ray: the connected module, from `ray_cluster.connected`.
      retries: how often a job begins again after its process died.
      watch: called often, to show the progress of the trials.
      command: gives the command line that trains a job. Every machine runs it in this folder.
    """
    # Workers unpickle it where `experiments` may not be importable.
    importlib.import_module("ray.cloudpickle").register_pickle_by_value(ray_task)
    task = ray.remote(max_retries=0, **demand.options())(ray_task.attend)
    running: dict[Any, _Attempt] = {}

    def start(job: jobs.Job, number: int = 1) -> None:
        line = [*command(folder, job), f"--lock_wait={jobs.LOCK_WAIT}"]
        log = str(folder.log(job[0].name).resolve())
        running[task.remote(line, os.getcwd(), log)] = _Attempt(job, number)

    try:
        for job in todo:
            start(job)
        while running:
            done, _ = ray.wait(list(running), timeout=_TICK)
            watch()
            for reference in done:
                attempt, end = running.pop(reference), _end(ray, reference)
                if end.code == TEMPORARY_FAILURE:
                    start(attempt.job, attempt.number)
                elif (end.code is None or end.code < 0) and attempt.number <= retries:
                    print(f"{attempt.job[0].name}: {_cause(end)}, so its job begins again")
                    start(attempt.job, attempt.number + 1)
                elif rest := _settle(attempt, folder, end):
                    start(rest)
        watch()
    except local.Terminated:
        for reference in running:
            ray.cancel(reference)
        if running:
            ray.wait(list(running), num_returns=len(running))
        raise
    except BaseException:
        for reference in running:
            ray.cancel(reference, force=True)
        raise


def _end(ray: Any, reference: Any) -> _End:
    try:
        return _End(*ray.get(reference))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error  # of an error in the task itself
        said = (str(cause).strip().splitlines() or ["no reason given"])[0]
        return _End(0, None, f"{type(cause).__name__}: {said}")


def _cause(end: _End) -> str:
    return f"its Ray task ended ({end.said})" if end.code is None else local.cause(end.code, 0)


def _settle(attempt: _Attempt, folder: SweepFolder, end: _End) -> jobs.Job:
    """Note the killed trials of a job, and return its remaining trials."""
    if end.code is not None and end.code >= 0:
        return local.settle(attempt.job, folder, end.process, end.code)
    times = f", the last of {attempt.number} times" if attempt.number > 1 else ""
    process = end.process or _begun_by(attempt.job, folder)
    return local.settle(attempt.job, folder, process, end.code or 0, f"{_cause(end)}{times}")


def _begun_by(job: jobs.Job, folder: SweepFolder) -> int:
    """The process that was training the job's trials; 0 if none has begun."""
    states = [folder.state(trial) for trial in job]
    return next((each.process for each in states if each.status in ("running", "interrupted")), 0)
