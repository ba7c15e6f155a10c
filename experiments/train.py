r"""Train the model that a config describes.

    python -m experiments.train --config=configs/quickstart.py --workdir=runs/lora \
        --config.variant.rank=16

`--config` also takes the `config.json` in a run's folder, or the `run.json` of an export. It makes
the run again, in another --workdir, or one with the settings that further flags change.

Give the same command again to continue a killed run. Schedulers send SIGTERM before they end a
process. On SIGTERM the run saves its current step, prints one line, and exits with code 75 and no
record; start it again. The scheduler must allow enough time for a step, an evaluation and a save.

    Slurm          sbatch --requeue --signal=TERM@120, and `scontrol requeue $SLURM_JOB_ID` where
                   srun ended with code 75 (or RequeueExit=75 in slurm.conf)
    Kubernetes     terminationGracePeriodSeconds: 120, and of a Job restartPolicy: OnFailure

To train one run on several machines, give this command on each of them. All must see --workdir:

    --distributed                                   take the processes from Slurm, a TPU pod,
                                                    Open MPI or Kubernetes
    --coordinator=HOST:PORT --processes=4 --process=0      give them by hand, --process from 0 to 3

A signal to one process stops all of them after the same step. All devices train together. Each has
its own rows of the batch. `--mesh=DATA,FSDP,TENSOR` can also divide the weights (`fsdp`, which
gathers them where they are used) and the matrix products (`tensor`). The mesh does not change the
results, except for rounding: a run can continue with another mesh, or on other machines. Without
such devices, `--devices=8` simulates eight on the CPU.

Before the first step, the compiled step is compared with NumPy's result of the same operations, one
by one (`lora_jax.compiled.audit`). Compilers sometimes make mistakes, and a run with wrong
gradients looks like a run of a worse method. `--noaudit` skips this check.

`--track=tensorboard,wandb` copies the metrics to these trackers, too (docs/guides/tracking.md).
"""

import functools
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from configs.settings import RunConfig
from experiments import cli
from experiments.planning import topologies
from experiments.runs.audit_flag import wanted
from experiments.runs.finished_run import changed_data, is_completed, require_adapter
from experiments.runs.run import run, summarise
from experiments.setup import processes
from experiments.setup.config import parse
from experiments.setup.devices import announce, mesh_of
from experiments.tracking import track_flag
from experiments.tracking.tracking import Track
from lora_jax.records.run_record import Record

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The config that says what to train.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The folder for the record, the metrics and the checkpoints."
)
_MESH = flags.DEFINE_list(
    "mesh",
    None,
    "The sizes of data, fsdp and tensor. -1 takes the remaining devices. The default is -1,1,1.",
)
_DEVICES = flags.DEFINE_integer(
    "devices",
    None,
    "Train on so many simulated CPU devices, to try a mesh without the devices that it is for. The "
    "default is the devices that there are.",
    lower_bound=1,
    upper_bound=topologies.MOST_SIMULATED,
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "The host:port of process 0, for processes that are started by hand."
)
_PROCESSES = flags.DEFINE_integer(
    "processes", None, "How many processes are started by hand.", lower_bound=1
)
_PROCESS = flags.DEFINE_integer("process", None, "The number of this process, from 0 on.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Join the processes that JAX finds by Slurm, a TPU pod, Open MPI or Kubernetes.",
)


def train() -> None:
    if _DEVICES.value is not None:
        topologies.prepare(_DEVICES.value)
    processes.initialize(  # before anything uses a device
        _COORDINATOR.value, _PROCESSES.value, _PROCESS.value, bool(_DISTRIBUTED.value)
    )
    try:
        mesh = mesh_of(None if _MESH.value is None else cli.integers("mesh", _MESH.value, "1,-1,1"))
        config, workdir = parse(_CONFIG.value.to_dict()), Path(str(_WORKDIR.value))
        track = Track(track_flag.wanted())
        announce()
        ended = is_completed(workdir)
        record = run(config, workdir, mesh=mesh, say=print, audit=wanted(), track=track)
        if ended:
            processes.first(functools.partial(require_adapter, workdir))
            _say_what_is_not_done(config, record, track)
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


def _say_what_is_not_done(config: RunConfig, record: Record, track: Track) -> None:
    """Print what a run that had ended before leaves undone, though it was asked for."""
    if not processes.writes():
        return
    if changed_data(config, record):
        print(
            "the run had ended, and is not trained again; its examples are not those of its files "
            "now, which have changed or are split in another way: name another --workdir to train "
            "on them"
        )
    if track.names:
        print(f"the run had ended: nothing is sent to {', '.join(track.names)}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    cli.main(train)
