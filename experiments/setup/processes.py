"""Let several processes train one run: join them, choose the one that writes, keep them in step."""

import os
import re
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils

from lora_jax.files.arrays import to_host
from lora_jax.messages import said
from lora_jax.sharding.mesh import said_by_all


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    found: bool = False,
) -> None:
    """Join the other processes, or do nothing if there are none.

    Call this before anything uses a device.

    Args:
      coordinator: host:port at which the others reach process 0.
      processes: how many processes there are.
      process: which one this is, from 0 on.
      found: let JAX find all of these, from Slurm, TPU pods, Open MPI or Kubernetes.

    Raises:
      ValueError: one line on arguments that cannot work, on a port that process 0 cannot use, or
        on why JAX finds nothing.
    """
    check_arguments(coordinator, processes, process, found)
    if found:
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"--distributed: JAX cannot tell how these processes meet ({said(error)}); "
                "give --coordinator, --processes and --process"
            ) from error
    elif coordinator is not None:
        if process == 0:
            _require_free_port(coordinator)
        # Without this, JAX would ask Slurm and others for the rest, such as each process's devices.
        try:
            jax.distributed.initialize(
                coordinator, processes, process, cluster_detection_method="deactivate"
            )
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"--coordinator={coordinator}: JAX cannot join the other processes ({said(error)})"
            ) from error


def check_arguments(
    coordinator: str | None, processes: int | None, process: int | None, found: bool
) -> None:
    """Raise a ValueError if the arguments of `initialize` cannot work."""
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
    if not 0 <= process < processes:
        raise ValueError(
            f"--process={process}: expected 0 to {processes - 1} of --processes={processes}"
        )


def _require_free_port(coordinator: str) -> None:
    """Raise a ValueError if process 0 cannot wait for the others at this port.

    JAX's own service ends the process with a segmentation fault then.
    """
    port, both = int(coordinator.rpartition(":")[2]), socket.has_dualstack_ipv6()
    with socket.socket(socket.AF_INET6 if both else socket.AF_INET) as tried:
        if both:  # all addresses, as JAX takes them
            tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # A port that the last run has just left is free.
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("", port))
        except OSError as error:
            raise ValueError(f"--coordinator={coordinator}: {error.strerror}") from error


def writes() -> bool:
    """Whether this process, the first, writes the files of a run and shows its progress."""
    return jax.process_index() == 0


def first(call: Callable[[], Any]) -> Any:
    """Broadcast the writing process's JSON result of `call`; every process must call this.

    Raises:
      ValueError: in every other process, if `call` raises a ValueError or OSError. The writing
        process raises that error itself.
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
    """Wait until every process has reached this call; `where` names it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def whole(tree: Any) -> Any:
    """Copy whole arrays of a tree into this process's memory; a lone process copies nothing."""
    return tree if jax.process_count() == 1 else jax.tree.map(to_host, tree)


def leave(error: BaseException) -> None:
    """Print an error and end this process at once, if there are others; else do nothing.

    The others would wait for it for ever otherwise. JAX ends them when it finds that this process
    is gone, after about a minute and a half.
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
