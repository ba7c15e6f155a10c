"""Several processes that train one run: how they meet, which of them writes, who goes first."""

import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils

from lora_jax.files.arrays import to_host
from lora_jax.sharding.between_processes import said_by_all


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    found: bool = False,
) -> None:
    """Join the other processes; to be called before anything uses a device. Alone, do nothing.

    Args:
      coordinator: host:port at which process 0 is found by the others.
      found: all of it is what JAX finds: of Slurm, TPU pods, Open MPI or Kubernetes.

    Raises:
      ValueError: one line on a combination that cannot work, or on why there is nothing to find.
    """
    check(coordinator, processes, process, found)
    if found:
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            said = str(error).splitlines()[0]
            raise ValueError(
                f"--distributed: JAX cannot tell how these processes meet ({said}); "
                "give --coordinator, --processes and --process"
            ) from error
    elif coordinator is not None:
        # Else JAX would ask Slurm and others for the rest, such as which devices are whose.
        jax.distributed.initialize(
            coordinator, processes, process, cluster_detection_method="deactivate"
        )


def check(coordinator: str | None, processes: int | None, process: int | None, found: bool) -> None:
    """Raise a ValueError on arguments of `initialize` that cannot work."""
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    there = [name for name, value in given.items() if value is not None]
    if found and there:
        raise ValueError(f"--distributed finds all by itself: leave out --{there[0]}")
    if not there:
        return
    if coordinator is None or processes is None or process is None:
        missing = next(name for name in given if name not in there)
        raise ValueError(f"--{there[0]} needs --{missing}, too")
    host, _, port = coordinator.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 1 << 16:
        raise ValueError(f"--coordinator={coordinator}: expected host:port, as 10.0.0.1:8476")
    if processes < 1:
        raise ValueError(f"--processes must be positive, got {processes}")
    if not 0 <= process < processes:
        raise ValueError(
            f"--process={process}: expected 0 to {processes - 1} of --processes={processes}"
        )


def writes() -> bool:
    """Whether this process is the one that writes the files of a run, and shows how far it is."""
    return jax.process_index() == 0


def first(call: Callable[[], Any]) -> Any:
    """What `call`, made by the process that writes, returns there: JSON. All have to ask.

    Raises:
      ValueError: everywhere, where it raises one, or an OSError, there.
    """
    if jax.process_count() == 1:
        return call()
    said: dict[str, Any] = {}
    mine: Exception | None = None
    if writes():
        try:
            said = {"value": call()}
        except (ValueError, OSError) as error:
            mine, said = error, {"error": str(error)}
    said = said_by_all(said)[0]
    if mine is not None:
        raise mine
    if "error" in said:
        raise ValueError(said["error"])
    return said["value"]


def together(where: str) -> None:
    """Return when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def whole(tree: Any) -> Any:
    """A tree whose arrays this process has whole, in its own memory; alone, it is as it was."""
    return tree if jax.process_count() == 1 else jax.tree.map(to_host, tree)


def leave(error: BaseException) -> None:
    """End this process at once if there are others, so that these do not wait for it for ever.

    They are ended when JAX finds that it is gone, in about a minute and a half.
    """
    if jax.process_count() == 1:
        return
    if isinstance(error, ValueError | OSError):
        print(f"error: process {jax.process_index()}: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
