"""Train some trials of a sweep in one process.

    python -m experiments.sweeps.worker --workdir=runs/sweep --trial=variant=lora,seed=0

The sweep's launchers start this command. You can also run it on any machine that has the sweep's
folder; `experiments.sweep --launcher=print` prints the commands.

Exit code 0 means that all these trials have completed, and 1 that one of them has not. After a
SIGTERM that comes before that, the state is saved and the code is 75: start the same command again.
"""

import sys
from pathlib import Path

from absl import flags

from experiments.cli import integers, main
from experiments.runs import audit_flag
from experiments.runs.run_options import RunOptions
from experiments.setup.devices import announce
from experiments.sweeps import jobs, worker_process
from experiments.sweeps.folder import SweepFolder
from experiments.tracking import track_flag
from lora_jax.training.trial_program import EXECUTIONS

_WORKDIR = flags.DEFINE_string("workdir", None, "The sweep's folder, with its trials.json.")
_TRIAL = flags.DEFINE_multi_string("trial", None, "The name of a trial.")
_LOCK_WAIT = flags.DEFINE_float(
    "lock_wait",
    jobs.GRACE,
    "How many seconds to wait, in all, for trials that another process still holds.",
    lower_bound=0,
)
_EXECUTION = flags.DEFINE_enum(
    "execution",
    None,
    EXECUTIONS,
    "How the trials of a program step. The default is the fastest way, which is measured.",
)
_RETRY = flags.DEFINE_bool("retry", False, "Also train diverged trials again.")
_HALVING = flags.DEFINE_integer(
    "halving",
    0,
    "With N: at each rung one of N trials goes on. 0 trains all trials to the end.",
)
_CORES = flags.DEFINE_list("cores", [], "The processor cores to use. The default is all of them.")
_LEASH = flags.DEFINE_bool(
    "leash",
    False,
    "End at the end of standard input: when the process that started this one has ended.",
)


def worker() -> None:
    if _LEASH.value:
        worker_process.end_with(sys.stdin.fileno())
    worker_process.confine(integers("cores", _CORES.value))
    folder = SweepFolder(Path(str(_WORKDIR.value)))
    names = list(_TRIAL.value or ())
    if not names:
        raise ValueError("--trial is missing: the name of a trial; repeat it for several")
    how = RunOptions(
        execution=_EXECUTION.value,  # type: ignore[arg-type]
        retry=bool(_RETRY.value),
        audit=audit_flag.wanted(),
        halving=int(_HALVING.value or 0),
        track=jobs.tracked(folder, track_flag.wanted()),
    )
    folder.require(names)  # an unknown name is an error before any training
    worker_process.allow_files()
    announce()
    if not jobs.work(folder, names, how, wait=_LOCK_WAIT.value):
        sys.exit(1)


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    main(worker)
