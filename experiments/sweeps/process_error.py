"""The error that ends a process, in a file for the one that started it to read."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from lora_jax.error_text import first_line
from lora_jax.files import json_text
from lora_jax.files.atomic import write_atomically


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """Write an error that leaves this context to a file, and let it go on.

    The process that reads it has made the file's folder. Without one, nobody reads it.
    """
    try:
        yield
    except Exception as error:
        left = json.dumps({"process": os.getpid(), "error": first_line(error)})
        with contextlib.suppress(OSError):  # this error is not the one to report
            if path.parent.is_dir():
                write_atomically(path, f"{left}\n".encode())
        raise


def read(path: Path, process: int) -> str:
    """The error that the process of this id wrote to a file; empty if it wrote none there."""
    try:
        left = json_text.read_object(path)
    except (OSError, ValueError):
        return ""
    return str(left.get("error", "")) if left.get("process") == process else ""
