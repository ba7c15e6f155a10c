"""The first steps of a process that another one starts; this module is quick to import."""

import contextlib
import os
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
    """Limit this process and its future threads to these cores; do nothing if the list is empty.

    Raises:
      ValueError: this process cannot have all of them.
    """
    if cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError, ValueError, OverflowError, MemoryError):
            os.sched_setaffinity(0, cores)
        given = os.sched_getaffinity(0)  # Linux leaves out cores that the machine has not
        if given != set(cores):
            said, some = ",".join(map(str, cores)), min(given)
            raise ValueError(
                f"--cores={said}: expected numbers of cores of this machine, such as {some}"
            )
