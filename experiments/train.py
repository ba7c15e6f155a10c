r"""Train what a config describes.

    python -m experiments.train --config=configs/quickstart.py --workdir=runs/lora \
        --config.variant.rank=16

The same command goes on where a killed run stopped. At a SIGTERM, by which schedulers announce that
they will end a process, the run saves the step that it is at, says so in one line and ends with
code 75, without a record: start it again. The notice has to be longer than a step, an evaluation
and a save take.

    Slurm          sbatch --requeue --signal=TERM@120, and `scontrol requeue $SLURM_JOB_ID` where
                   srun ended with code 75 (or RequeueExit=75 in slurm.conf)
    Kubernetes     terminationGracePeriodSeconds: 120, and of a Job restartPolicy: OnFailure

One run on several machines is this command on each of them, of which all see --workdir:

    --distributed                                   what Slurm, a TPU pod, Open MPI or Kubernetes
                                                    say of the processes
    --coordinator=HOST:PORT --processes=4 --process=0      the same by hand, 0 to 3

A signal to one of the processes stops all of them after the same step. All devices train together:
each on rows of its own and, as `--mesh=DATA,FSDP,TENSOR` says, on parts of the weights (`fsdp`,
which gathers them where they are used) and of the products (`tensor`). What a run comes to does not
depend on it, but for rounding: it may go on with another mesh, or on other machines.

Before the first step, the compiled one is compared with what NumPy makes of the same operations one
by one (`lora_jax.compiled.audit`): compilers are wrong now and then, and a run with wrong gradients
looks like one of a worse method. `--noaudit` trains without.
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from experiments import cli
from experiments.distributed import processes
from experiments.distributed.flags import initialize
from experiments.distributed.mesh import mesh_of
from experiments.runs.audit_flag import wanted
from experiments.runs.run import run, summarise

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to train.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the record, metrics and checkpoints.")
_MESH = flags.DEFINE_list(
    "mesh", None, "Sizes of data, fsdp, tensor; -1 for what is left. By default all is data."
)


def train() -> None:
    initialize()
    try:
        mesh = mesh_of(None if _MESH.value is None else cli.integers("mesh", _MESH.value))
        config, workdir = _CONFIG.value.to_dict(), Path(str(_WORKDIR.value))
        record = run(config, workdir, mesh=mesh, say=print, audit=wanted())
    except Exception as error:
        processes.leave(error)
        raise
    completed = record.status == "completed"
    if processes.writes():
        for line in summarise(record):
            print(line)
        print(f"{'record and adapter' if completed else 'record'}: {_WORKDIR.value}")
    if not completed:
        sys.exit(1)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    cli.main(train)
