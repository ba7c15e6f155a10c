"""A folder that is there whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`, which gets that name if the code inside succeeds.

    Raises:
      ValueError: `path` is there already, and is not an empty folder, or is a mount point. Nothing is
        changed then.
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: name a new or empty folder")
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"{path} is not empty: name a new or empty folder")
    if os.path.ismount(path):
        raise ValueError(f"{path} is a mount point, which cannot be replaced: name a folder in it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
