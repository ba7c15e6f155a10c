"""How much memory a process may still take, where the system tells."""

from pathlib import Path


def free_bytes() -> int | None:
    """What is free on this machine, or in the container where that is less; None if unknown."""
    found = [bytes_ for bytes_ in (_machine(), _container()) if bytes_ is not None]
    return min(found, default=None)


def _machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _container() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / f"memory.{name}").read_text() for name in ("max", "current"))
    except OSError:
        return None
    return None if limit.strip() == "max" else max(int(limit) - int(used), 0)
