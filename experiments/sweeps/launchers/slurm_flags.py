"""The flags of `--launcher=slurm`."""

from typing import Any

from absl import flags

_OPTIONS = {
    "slurm_partition": flags.DEFINE_string(
        "slurm_partition", None, "The partition of Slurm for the jobs. The default is Slurm's own."
    ),
    "timeout_min": flags.DEFINE_integer(
        "slurm_time",
        None,
        "The minutes that each job may take. The default is submitit's own.",
        lower_bound=0,
    ),
    "gpus_per_node": flags.DEFINE_integer(
        "slurm_gpus",
        None,
        "How many GPUs each job gets. The default is none.",
        lower_bound=0,
    ),
    "cpus_per_task": flags.DEFINE_integer(
        "slurm_cpus",
        None,
        "How many cores each job gets. The default is Slurm's own.",
        lower_bound=1,
    ),
    "mem_gb": flags.DEFINE_integer(
        "slurm_memory",
        None,
        "How many GB of memory each job gets. The default is Slurm's own.",
        lower_bound=0,
    ),
    "slurm_account": flags.DEFINE_string(
        "slurm_account", None, "The account of Slurm for the jobs. The default is Slurm's own."
    ),
    "slurm_array_parallelism": flags.DEFINE_integer(
        "slurm_parallel",
        None,
        "How many jobs may run at a time. The default is all.",
        lower_bound=1,
    ),
}
_CLUSTER = flags.DEFINE_enum(
    "slurm_cluster",
    None,
    ["slurm", "local"],
    "Where jobs run: slurm submits them to Slurm, the default; local runs them on this machine.",
)
_WAIT = flags.DEFINE_bool(
    "slurm_wait", False, "Wait until the jobs have ended, and show their progress."
)


def options() -> dict[str, Any]:
    """submitit's parameters; None where a flag was not given."""
    return {name: flag.value for name, flag in _OPTIONS.items()}


def cluster() -> str | None:
    """What runs the jobs, as in `slurm.submit`."""
    return _CLUSTER.value


def waits() -> bool:
    """Whether the command waits until the jobs have ended."""
    return bool(_WAIT.value)
