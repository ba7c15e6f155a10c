"""`--launcher=ray`: connect to a Ray cluster, and see what its machines have."""

import contextlib
import dataclasses
import importlib
import os
import signal
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_STORE = 100 * 2**20  # bytes; a sweep's tasks pass no objects, and Ray wants 75 MiB at least
_REACHED = 5.0  # seconds; Ray itself would try for two minutes


@dataclasses.dataclass(frozen=True)
class Demand:
    """What each job gets of a machine."""

    cpus: int = 1
    gpus: int = 0
    tpus: int = 0
    """TPU chips."""
    memory: int = 0
    """GiB, or 0 for any."""

    def options(self) -> dict[str, Any]:
        """The same as options of a Ray task."""
        memory = {"memory": self.memory * 2**30} if self.memory else {}
        tpus = {"resources": {"TPU": self.tpus}} if self.tpus else {}
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, **memory, **tpus}

    def shortage(self, machines: Sequence[Mapping[str, float]]) -> str:
        """What none of these machines has, with the flag; empty if a job fits on one of them.

        Args:
          machines: Ray's resources of each machine, such as `{"CPU": 8.0, "memory": 3e10}`.
        """
        wanted = {
            "CPU": ("--ray_cpus", self.cpus, 1),
            "GPU": ("--ray_gpus", self.gpus, 1),
            "TPU": ("--ray_tpus", self.tpus, 1),
            "memory": ("--ray_memory", self.memory, 2**30),
        }
        for name, (flag, amount, unit) in wanted.items():
            most = max((each.get(name, 0) for each in machines), default=0) / unit
            if amount > most:
                return f"{flag}={amount}: no machine of the Ray cluster has more than {most:.4g}"
        for each in machines:
            if all(each.get(name, 0) >= n * unit for name, (_, n, unit) in wanted.items()):
                return ""
        flags = " and ".join(flag for flag, amount, _ in wanted.values() if amount)
        return f"no machine of the Ray cluster has {flags} at once"


def require() -> Any:
    """Import Ray; raise a ValueError if it is not installed."""
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise ValueError(
            '--launcher=ray needs Ray: pip install "lora-jax[ray]", or --launcher=local'
        ) from error


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a cluster, and give the module `ray`. At the end, all tasks of this process end.

    Args:
      address: `auto` for the cluster that runs on this machine or that RAY_ADDRESS names, a
        cluster's `HOST:PORT`, or `local` for a new one of this machine, which ends with this.

    Raises:
      ValueError: there is no such cluster, or Ray is not installed.
    """
    ray = require()
    there = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if there not in ("", "auto", "local"):
        _reach(there)
    options: dict[str, Any] = {}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports to its makers
        options = {"object_store_memory": _STORE, "include_dashboard": False}
    own = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            # JAX warns of forks, of which those here begin another program at once.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            ray.init(address, log_to_driver=False, logging_level="ERROR", **options)
    except (OSError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"--ray_address={address}: {said}{_hint(address, error)}") from error
    try:
        signal.signal(signal.SIGTERM, own)  # Ray has replaced it
        yield ray
    finally:
        ray.shutdown()


def _hint(address: str, error: BaseException | None) -> str:
    """What may help after an error of `ray.init`."""
    if address == "local":
        return ""
    while error is not None:
        if "AuthenticationError" in f"{type(error).__name__}: {error}":
            return (
                "; the cluster asks for a token: set RAY_AUTH_MODE=token, as where it was started"
            )
        error = error.__cause__ or error.__context__
    return "; --ray_address=local starts one on this machine"


def machines(ray: Any) -> list[dict[str, float]]:
    """Ray's resources of each machine of the cluster."""
    return [each["Resources"] for each in ray.nodes() if each["Alive"]]


def _reach(address: str) -> None:
    """Raise a ValueError unless something answers at `HOST:PORT`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _REACHED).close()
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise ValueError(f"no Ray cluster answers at {address}: {said}") from error
