"""What a worker's process does beside training, for the one that started it.

It ends with that process, keeps to its cores and opens enough files. This module is quick to
import.
"""

import contextlib
import os
import resource
import threading
from collections.abc import Sequence


def end_with(descriptor: int) -> None:
    """Exit at end of file, that is, when the process at the pipe's other end dies.

    Args:
      descriptor: the file descriptor of the pipe to read.
    """

    def watch() -> None:
        with contextlib.suppress(OSError):
            # A Python file object has a lock, which would block a normal exit of the interpreter.
            while os.read(descriptor, 1):
                pass
        os._exit(1)  # no clean-up needed: a run continues from its files

    threading.Thread(target=watch, daemon=True).start()


def confine(cores: Sequence[int]) -> None:
    """Limit this process and its future threads to these cores; do nothing if the list is empty."""
    if cores and hasattr(os, "sched_setaffinity"):
        try:
            os.sched_setaffinity(0, cores)
        except (OSError, OverflowError) as error:
            raise ValueError(f"--cores={','.join(map(str, cores))}: {error}") from error


ENOUGH = 2**16
"""Files that a process may open: a trial has four open while it trains."""


def allow_files() -> None:
    """Let this process, and those that it starts, open many files, if the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS allows fewer than its hard limit
        wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
