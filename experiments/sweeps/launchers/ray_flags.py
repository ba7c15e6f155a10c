"""The flags of `--launcher=ray`."""

import re

from absl import flags

from experiments.sweeps.launchers.ray_cluster import Demand
from lora_jax.suggest import nearest

_ADDRESS = flags.DEFINE_string(
    "ray_address",
    "auto",
    "The Ray cluster: auto for the one that runs on this machine or that RAY_ADDRESS names, "
    "HOST:PORT, or local to start one on this machine that ends with the command.",
)
_CPUS = flags.DEFINE_integer("ray_cpus", 1, "How many CPUs each job gets.", lower_bound=0)
_GPUS = flags.DEFINE_integer("ray_gpus", 0, "How many GPUs each job gets.", lower_bound=0)
_TPUS = flags.DEFINE_integer("ray_tpus", 0, "How many TPU chips each job gets.", lower_bound=0)
_MEMORY = flags.DEFINE_integer(
    "ray_memory", 0, "How many GiB of memory each job gets; 0 for any.", lower_bound=0
)
_RETRIES = flags.DEFINE_integer(
    "ray_retries",
    3,
    "How often a job begins again after its process or its machine has died.",
    lower_bound=0,
)


def address() -> str:
    """The cluster's address, as in `ray_cluster.connected`.

    Raises:
      ValueError: it has another form.
    """
    given = str(_ADDRESS.value)
    if given in ("auto", "local") or re.fullmatch(r"[\w.\[\]:-]*[\w\]]:[0-9]{1,5}", given):
        return given
    if given.startswith("ray://"):
        raise ValueError(
            f"--ray_address={given}: start the sweep on a machine of the cluster, with "
            "--ray_address=auto"
        )
    near = nearest(given, ("auto", "local"), 1)
    raise ValueError(f"--ray_address={given}: expected HOST:PORT, auto or local; nearest: {near}")


def demand() -> Demand:
    """What each job gets."""
    if _GPUS.value and _TPUS.value:
        raise ValueError("--ray_gpus and --ray_tpus: a job runs on one kind of device; give one")
    return Demand(
        int(_CPUS.value or 0), int(_GPUS.value or 0), int(_TPUS.value or 0), int(_MEMORY.value or 0)
    )


def retries() -> int:
    """How often a job begins again after its process or its machine has died."""
    return int(_RETRIES.value or 0)
