"""`--launcher=slurm`: submit a Slurm job for each job of a sweep, with submitit."""

import dataclasses
import importlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_TICK = 1.0  # seconds between looks at the jobs


@dataclasses.dataclass(frozen=True)
class Command:
    """The command of a job; if Slurm ends it by time limit or preemption, it is queued again."""

    line: tuple[str, ...]

    def __call__(self) -> None:
        code = subprocess.run(self.line, check=False).returncode
        if code:
            raise RuntimeError(f"not all trials are completed: the worker ended with code {code}")

    def checkpoint(self) -> Any:
        return importlib.import_module("submitit").helpers.DelayedSubmission(self)


def submit(
    commands: Sequence[Sequence[str]],
    logs: Path,
    options: Mapping[str, Any],
    cluster: str | None = None,
) -> list[Any]:
    """Submit commands as one array, and return submitit's jobs, which do not need this process.

    Args:
      commands: the commands of a sweep's jobs, to be run in the current folder.
      logs: the folder for submitit's files and the output of each job.
      options: submitit's parameters, such as `timeout_min` or `slurm_partition`; None is left out.
      cluster: `local` for processes on this machine; otherwise Slurm, which must be installed.

    Raises:
      ValueError: submitit or Slurm is not installed, or an option is unknown.
    """
    submitit = require(cluster)
    try:
        executor = submitit.AutoExecutor(folder=logs.resolve() / "%j", cluster=cluster or "slurm")
        executor.update_parameters(**{k: v for k, v in options.items() if v is not None})
    except (RuntimeError, TypeError, NameError, AssertionError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"--launcher=slurm: {said}") from error
    # Jobs unpickle it where `experiments` may be installed under another name, or not known at all.
    importlib.import_module("cloudpickle").register_pickle_by_value(sys.modules[__name__])
    with executor.batch():
        return [executor.submit(Command(tuple(line))) for line in commands]


def require(cluster: str | None = None) -> Any:
    """Import submitit; raise a ValueError if it or Slurm is not installed.

    Without Slurm, submitit would run processes on this machine; that needs `cluster="local"`.
    """
    try:
        submitit = importlib.import_module("submitit")
    except ModuleNotFoundError as error:
        raise ValueError(
            '--launcher=slurm needs submitit: pip install "lora-jax[slurm]", or --launcher=print'
        ) from error
    if cluster != "local" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise ValueError(
            "--launcher=slurm: there is no Slurm here (no sbatch and srun on the PATH); "
            "--slurm_cluster=local runs jobs as processes of this machine, by submitit"
        )
    return submitit


def watch(submitted: Sequence[Any], update: Callable[[], None]) -> None:
    """Wait until all submitted jobs are done, calling `update` meanwhile."""
    while not all(job.done() for job in submitted):
        update()
        time.sleep(_TICK)
