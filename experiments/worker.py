"""Train some trials of a sweep in one process.

    python -m experiments.worker --workdir=runs/sweep --trial=variant=lora,seed=0

The sweep's launchers start this command. You can also run it on any machine that has the sweep's
folder; `experiments.sweep --launcher=print` prints the commands.
"""

import sys
from pathlib import Path

from absl import flags

from experiments import cli
from experiments.distributed.devices import announce
from experiments.runs import audit_flag
from experiments.sweeps import child_process, jobs, process_error
from experiments.sweeps.folder import SweepFolder
from experiments.tracking import track_flag
from lora_jax.training.trial_program import EXECUTIONS

_WORKDIR = flags.DEFINE_string("workdir", None, "The sweep's folder, with its trials.json.")
_TRIAL = flags.DEFINE_multi_string("trial", None, "The name of a trial; repeat it for several.")
_EXECUTION = flags.DEFINE_enum(
    "execution",
    None,
    EXECUTIONS,
    "How the trials of a program step. The default is the fastest way, which is measured.",
)
_RETRY = flags.DEFINE_bool("retry", False, "Also train diverged trials again.")
_HALVING = flags.DEFINE_integer(
    "halving", 0, "Of so many trials, one goes on at each rung; 0: all train to the end."
)
_CORES = flags.DEFINE_list("cores", [], "The processor cores to use. The default is all of them.")
_LEASH = flags.DEFINE_bool(
    "leash",
    False,
    "End at the end of standard input: when the process that started this one has ended.",
)


def worker() -> None:
    if _LEASH.value:
        child_process.end_with(sys.stdin.fileno())
    child_process.confine([int(core) for core in _CORES.value])
    folder = SweepFolder(Path(str(_WORKDIR.value)))
    names = list(_TRIAL.value or ())
    retry, audit = bool(_RETRY.value), audit_flag.wanted()
    halving = int(_HALVING.value or 0)
    with process_error.written(folder.error(names[0])):
        track = jobs.tracked(folder, track_flag.wanted())
        how = jobs.How(_EXECUTION.value, retry, audit, halving, track)  # type: ignore[arg-type]
        folder.require(names)  # an unknown name is an error before any training
        announce()
        completed = jobs.work(folder, names, how)
    if not completed:
        sys.exit(1)


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "trial"])
    cli.main(worker)
