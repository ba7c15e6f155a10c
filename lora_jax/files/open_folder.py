"""A folder as an open file, such as a lock needs."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def open_folder(folder: Path) -> Iterator[int]:
    """Give the descriptor of a folder, which is closed in the end.

    Raises:
      OSError: it is not a folder, or cannot be read.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
