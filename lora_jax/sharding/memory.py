"""How much memory is available, and an error for arrays that do not fit into it.

On an accelerator this is the device's memory. On the CPU it is what is left of the machine's
memory, or of the control group that limits a container or a cluster's job.
"""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Sharding

from lora_jax.files.arrays import is_key


def size(count: float) -> str:
    """A number of bytes as text, in GiB or MiB."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def tree_bytes(tree: Any) -> int:
    """The bytes of a pytree's arrays, or of objects with their shapes and dtypes."""
    return sum(map(_bytes, jax.tree.leaves(tree)))


def available() -> int | None:
    """Bytes available for new arrays; None if unknown."""
    device: Any = jax.local_devices()[0]
    if device.platform == "cpu":
        return host_memory()
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    return None if limit is None else int(limit) - int(stats.get("bytes_in_use", 0))


def host_memory(root: Path = Path("/")) -> int | None:
    """Bytes of the machine's memory that this process may still take; None if unknown.

    Args:
      root: the root of the file system in which Linux reports them.
    """
    return min((*_of_machine(root), *_of_groups(root)), default=None)


def check_fits(
    what: str, shapes: Mapping[str, Any], shardings: Mapping[str, Sharding] | None = None
) -> None:
    """Raise a ValueError if arrays would not fit, before any of them is made.

    Args:
      what: the beginning of the error message.
      shapes: objects with the shape and dtype of each array, by its path.
      shardings: where each goes; by default all go to one device.
    """
    needed = sum(
        _bytes(each) if shardings is None else _here(each, shardings[path])
        for path, each in shapes.items()
    )
    room = available()
    if room is not None and needed > room:
        raise ValueError(
            f"{what}: its weights take {size(needed)}, and {size(room)} of memory are available; "
            "take a smaller model, a dtype of fewer bits, or more devices"
        )


def _bytes(leaf: Any) -> int:
    if is_key(leaf):
        return _bytes(jax.eval_shape(jax.random.key_data, leaf))
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _here(leaf: Any, sharding: Sharding) -> int:
    """Bytes of an array in one memory: a device's, or the one that all CPU devices share."""
    part = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    devices = sharding.addressable_devices
    shared = all(device.platform == "cpu" for device in devices)
    return part * len(devices) if shared else part


def _of_machine(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024
            return
    if root == Path("/") and hasattr(os, "sysconf"):  # not Linux: all memory, in use or not
        names = os.sysconf_names
        if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
            yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_groups(root: Path) -> Iterator[int]:
    """What is left of each limit on this process; a group's limit holds for its subgroups, too."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        second = controllers == ""
        if not second and "memory" not in controllers.split(","):
            continue
        top = root / ("sys/fs/cgroup" if second else "sys/fs/cgroup/memory")
        own = Path(path.lstrip("/"))
        for folder in (own, *own.parents):  # in a container's own view, only the last exists
            yield from _left(top / folder, second)


def _left(folder: Path, second: bool) -> Iterator[int]:
    """A group's limit minus the memory that cannot be freed (the file cache can be)."""
    name, used = ("memory.max", "anon") if second else ("memory.limit_in_bytes", "total_rss")
    for line in _lines(folder / name):
        if line.isdecimal():  # "max" means no limit
            taken = (each.split() for each in _lines(folder / "memory.stat"))
            counts = {each[0]: int(each[1]) for each in taken if len(each) == 2}
            yield max(0, int(line) - counts.get(used, 0))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
