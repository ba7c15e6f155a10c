"""The flags of a command that several processes can run together."""

from absl import flags

from experiments.distributed import processes

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "The host:port of process 0, for processes that are started by hand."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes are started by hand.")
_PROCESS = flags.DEFINE_integer("process", None, "The number of this process, from 0 on.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Join the processes that JAX finds by Slurm, a TPU pod, Open MPI or Kubernetes.",
)


def initialize() -> None:
    """Join the other processes, before anything uses a device (`processes.initialize`)."""
    processes.initialize(
        _COORDINATOR.value, _PROCESSES.value, _PROCESS.value, bool(_DISTRIBUTED.value)
    )
