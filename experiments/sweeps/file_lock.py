"""Locks of files, which the system frees when the process that holds them dies."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path


class LockedError(OSError):
    """Another process holds the lock."""


@contextlib.contextmanager
def lock(path: Path, *, shared: bool = False, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file; the system frees it when the process dies.

    Args:
      shared: take a shared lock, which other shared locks allow.
      wait: the seconds to wait for the lock.

    Raises:
      LockedError: another process holds it; the message names the process.
      OSError: the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        until = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    raise LockedError(f"{holder} is working on {path.parent.parent}") from None
            except OSError as error:
                raise OSError(
                    f"{path.parent.parent}: the file system has no locks ({error.strerror}), and "
                    "two processes could train one trial; docs/guides/launchers.md says which has"
                ) from error
            time.sleep(0.1)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def locked(path: Path) -> bool:
    """Whether a process holds the exclusive lock of a file; this holds the lock only to test it."""
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
