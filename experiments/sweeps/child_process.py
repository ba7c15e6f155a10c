"""What a process that another one starts does first; nothing here takes long to import."""

import contextlib
import os
import threading
from collections.abc import Sequence


def end_with(descriptor: int) -> None:
    """End this process, whatever it does, when a file ends: a pipe does with who holds its end."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            # Not by a Python file, whose lock an interpreter that ends normally would wait for.
            while os.read(descriptor, 1):
                pass
        os._exit(1)  # nothing to tidy up: a run goes on from what is on disk

    threading.Thread(target=watch, daemon=True).start()


def confine(cores: Sequence[int]) -> None:
    """Keep this process, and the threads that it will start, to these cores."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
