"""The flags of a command that several processes can run together."""

from absl import flags

from experiments.distributed import processes

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, where processes started by hand meet."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many there are.")
_PROCESS = flags.DEFINE_integer("process", None, "Which one this is, from 0 on.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Processes of Slurm, a TPU pod, Open MPI or Kubernetes, as JAX finds."
)


def initialize() -> None:
    """Join the other processes, before anything uses a device (`processes.initialize`)."""
    processes.initialize(
        _COORDINATOR.value, _PROCESSES.value, _PROCESS.value, bool(_DISTRIBUTED.value)
    )
