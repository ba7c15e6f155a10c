"""A folder that is there whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lora_jax.files import full_disk


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`, which gets that name if the code inside succeeds.

    Raises:
      ValueError: `path` is a mount point, or is there already and not an empty folder. Nothing is
        changed then.
      OSError: the disk is full, in one line, whatever error the code inside met.
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
    except Exception as error:
        if not full_disk.is_full(error):
            raise
        raise OSError(  # no FullDiskError: its message says that the work goes on from there
            f"{path}: the disk or a quota is full, and nothing is kept: make room and give the "
            "same command again, which begins anew"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
