"""The devices that a command computes on: describe them in one line, and make a mesh of them."""

import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from experiments.setup import processes
from lora_jax.messages import count
from lora_jax.sharding import memory
from lora_jax.sharding.mesh import make_mesh, mesh_sizes


def announce() -> None:
    """Print the devices of all processes on standard error; one process prints.

    Call this after the processes have joined (`processes.initialize`).
    """
    if processes.writes():
        print(f"devices: {described(jax.devices(), jax.process_count())}", file=sys.stderr)


def cores() -> list[int]:
    """The numbers of the processor's cores that this process may use; none where unknown."""
    if hasattr(os, "sched_getaffinity"):  # which macOS lacks
        return sorted(os.sched_getaffinity(0))
    return []


def core_count() -> int:
    """How many of the processor's cores this process may use."""
    return len(cores()) or os.cpu_count() or 1


def described(devices: Sequence[Any], process_count: int = 1) -> str:
    """The number and the kind of devices, with the memory of one if it is known.

    A CPU is described by its cores and by the memory that this process may still take.
    """
    if devices[0].platform == "cpu":
        room, cores = memory.host_memory(), core_count()
        free = "" if room is None else f", {memory.size(room)} of memory are available"
        said = f"{count(len(devices), 'CPU device')} on {count(cores, 'core')}{free}"
    else:
        kinds = Counter(each.device_kind for each in devices)
        rooms = {each.device_kind: room for each in devices if (room := _bytes(each))}
        said = " and ".join(
            f"{count} x {kind}"
            + (f" with {memory.size(rooms[kind])} each" if kind in rooms else "")
            for kind, count in kinds.items()
        )
    return said + (f", in {process_count} processes" if process_count > 1 else "")


def _bytes(device: Any) -> int | None:
    """The memory of an accelerator that programs may use; None if it cannot be asked for it.

    Only those of this process can be.
    """
    if device.process_index != jax.process_index():
        return None
    return (device.memory_stats() or {}).get("bytes_limit")


def mesh_of(sizes: Sequence[int] | None) -> Mesh | None:
    """The mesh with these sizes of data, fsdp and tensor; by default all devices are `data`.

    The result is None if one device trains alone. A single process may use only some devices.

    Raises:
      ValueError: the sizes do not fit the number of devices.
    """
    devices = jax.devices()
    sizes = (len(devices), 1, 1) if sizes is None else tuple(sizes)
    wanted = math.prod(sizes)
    if jax.process_count() == 1 and 0 < wanted < len(devices):
        devices = devices[:wanted]
    mesh = make_mesh(*mesh_sizes(sizes, len(devices), "--mesh="), devices=devices)
    return None if mesh.size == 1 else mesh
