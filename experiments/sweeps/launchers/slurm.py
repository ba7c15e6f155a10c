"""`--launcher=slurm`: submit a Slurm job for each job of a sweep, with submitit."""

import contextlib
import dataclasses
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.runs.interruption import TEMPORARY_FAILURE
from experiments.sweeps import jobs
from lora_jax.training.preemption import noted_sigterms

_NAMES = {
    "partition": "slurm_partition",
    "account": "slurm_account",
    "time": "timeout_min",
    "gpus": "gpus_per_node",
    "cpus": "cpus_per_task",
    "memory": "mem_gb",
    "parallel": "slurm_array_parallelism",
}
"""submitit's names of what a job gets."""
_OPTIONS = flags.DEFINE_list(
    "slurm",
    [],
    "What each job gets, such as --slurm=partition=gpu,gpus=1,time=120. partition and account are "
    "Slurm's; time is in minutes and memory in GB; gpus and cpus; parallel is how many jobs may "
    "run at a time. The defaults are submitit's and Slurm's own. An item with a comma of its own "
    "needs quotes: '--slurm=\"partition=gpu,long\",gpus=1'.",
)
CLUSTER = flags.DEFINE_enum(
    "slurm_cluster",
    None,
    ["slurm", "local"],
    "Where jobs run: slurm submits them to Slurm, the default; local runs them on this machine.",
)
WAIT = flags.DEFINE_bool(
    "slurm_wait", False, "Wait until the jobs have ended, and show their progress."
)

_TICK = 1.0  # seconds between looks at the jobs
_TIME_LIMITS = 100
"""How often a job that its time limit ends is queued again; each time it has saved its state."""


def options() -> dict[str, Any]:
    """submitit's parameters that `--slurm` gives; a ValueError names a wrong one."""
    return jobs.resources("slurm", _OPTIONS.value, _NAMES, texts=("partition", "account"))


@dataclasses.dataclass
class Command:
    """The command of a job, which saves its state when Slurm asks the job to end.

    Slurm sends SIGTERM to a job that is preempted or cancelled, and submitit's own signal before
    the time limit. They reach this process, and not the one that it starts, which is told here.
    """

    line: tuple[str, ...]
    _process: subprocess.Popen[bytes] | None = dataclasses.field(
        default=None, init=False, repr=False, compare=False
    )

    def __call__(self) -> None:
        code = None
        with noted_sigterms() as told:
            self._process = subprocess.Popen(self.line)
            while code is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = self._process.wait(timeout=_TICK)
                if told:
                    self._process.terminate()
        if told and code in (TEMPORARY_FAILURE, -signal.SIGTERM):
            _queue_again()
            sys.exit(TEMPORARY_FAILURE)  # without a result, which would be that of the job
        if code:
            raise RuntimeError(f"not all trials are completed: the worker ended with code {code}")

    def checkpoint(self) -> Any:
        """Let the command save; return what submitit queues in its place, from a signal handler."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(ChildProcessError):  # it has ended already
                # `Popen.wait` would wait for its own lock, which the interrupted call holds.
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return importlib.import_module("submitit").helpers.DelayedSubmission(Command(self.line))


def _queue_again() -> None:
    """Queue this job again, unless Slurm has ended it, as it does with one that is cancelled."""
    environment = importlib.import_module("submitit").JobEnvironment()
    if environment.cluster == "slurm":
        line = ["squeue", "--noheader", "--format=%T", f"--jobs={environment.job_id}"]
        if subprocess.run(line, capture_output=True, check=False).stdout.strip() == b"RUNNING":
            subprocess.run(["scontrol", "requeue", environment.job_id], check=False)


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
      options: submitit's parameters, such as `timeout_min` or `slurm_partition`.
      cluster: `local` for processes on this machine; otherwise Slurm, which must be installed.

    Raises:
      ValueError: submitit or Slurm is not installed, an option is unknown, or Slurm refuses.
    """
    submitit = require(cluster)
    try:
        executor = submitit.AutoExecutor(
            folder=logs.resolve() / "%j",
            cluster=cluster or "slurm",
            slurm_max_num_timeout=_TIME_LIMITS,
        )
        # The script gets SIGTERM, too: without a trap it would end, and its job with it.
        given = {"slurm_setup": ["trap : TERM"], **options}
        executor.update_parameters(**given)
    except (RuntimeError, TypeError, NameError, AssertionError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"--launcher=slurm: {said}") from error
    # Jobs unpickle it where `experiments` may be installed under another name, or not known at all.
    importlib.import_module("cloudpickle").register_pickle_by_value(sys.modules[__name__])
    try:
        with executor.batch():
            submitted = [executor.submit(Command(tuple(line))) for line in commands]
    except RuntimeError as error:  # what sbatch said
        said = " ".join(str(error).split())
        raise ValueError(f"--launcher=slurm: no job was submitted: {said}") from error
    return submitted


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
