"""What a worker's process does beside training, for the one that started it.

It ends with that process, keeps to its cores, opens enough files, and leaves the error that ends it
in a file. This module is quick to import.
"""

import contextlib
import json
import os
import resource
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path


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


PER_TRIAL = 4
"""Files that are open while a trial trains: the locks of it and of its folder, and its metrics."""
LEAST, ENOUGH = 64, 1024
"""Files for all else: without the first number no process trains, and the second is plenty."""


def allow_files(trials: int) -> None:
    """Let this process, and those that it starts, open as many files as the trials of a job need.

    Raises:
      ValueError: the system does not allow as many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = PER_TRIAL * trials + ENOUGH
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if resource.RLIM_INFINITY != soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS allows fewer than its hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    needed = PER_TRIAL * trials + LEAST
    if resource.RLIM_INFINITY != soft < needed:
        raise ValueError(
            f"a job of {trials} trials opens {needed} files or more, and this process may open "
            f"{soft} (`ulimit -Hn`): lower --per_job (with --search, --per_round or --trials)"
        )


@contextlib.contextmanager
def error_written(path: Path) -> Iterator[None]:
    """Write an error that leaves this context to a file, and let it go on.

    The process that reads it has made the file's folder. Without one, nobody reads it.
    """
    try:
        yield
    except Exception as error:
        from lora_jax.error_text import first_line  # these take seconds: they import JAX
        from lora_jax.files.atomic import write_atomically

        left = json.dumps({"process": os.getpid(), "error": first_line(error)})
        with contextlib.suppress(OSError):  # this error is not the one to report
            if path.parent.is_dir():
                write_atomically(path, f"{left}\n".encode())
        raise


def read_error(path: Path, process: int) -> str:
    """The error that the process of this id wrote to a file; empty if it wrote none there."""
    from lora_jax.files import json_text

    try:
        left = json_text.read_object(path)
    except (OSError, ValueError):
        return ""
    return str(left.get("error", "")) if left.get("process") == process else ""
