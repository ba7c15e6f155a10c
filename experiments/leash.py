"""What a process that another one starts does first; nothing here takes long to import."""

import contextlib
import os
import threading
from collections.abc import Sequence
from typing import BinaryIO


def end_with(stream: BinaryIO) -> None:
    """End this process, whatever it does, when a stream ends: with the one that holds its end."""

    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):
            while stream.read(1):
                pass
        os._exit(1)  # nothing to tidy up: a run goes on from what is on disk

    threading.Thread(target=watch, daemon=True).start()


def confine(cores: Sequence[int]) -> None:
    """Keep this process, and the threads that it will start, to these cores."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
