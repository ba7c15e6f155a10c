"""Files and folders that are there whole or not at all.

A process killed at any moment leaves the old file or the new one.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from lora_jax.files import full_disk


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file atomically: its content is always the old or the new. Creates its folder."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what then replaces a file, as `write_atomically` does.

    It is for libraries that write files themselves. If the block fails, the file stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with full_disk.naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name also survives a power cut
    finally:
        os.close(folder)


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`, which gets that name if the code inside succeeds.

    A temporary folder that a killed process left is removed by the next call for the same path. Its
    process had it locked, so those of living processes stay, on other machines too. Where the file
    system has no locks, all stay.

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
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path)
    with _locked_folder(path) as temporary:
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


@contextlib.contextmanager
def _locked_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, locked while this process lives; it is removed in the end."""
    with contextlib.ExitStack() as stack:
        there = False
        while not there:  # another call may remove it before it is locked
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
            temporary.mkdir()
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            with contextlib.suppress(OSError):  # the file system has no locks
                fcntl.flock(stack.enter_context(open_folder(temporary)), fcntl.LOCK_EX)
            there = temporary.is_dir()
        yield temporary


def _remove_left(path: Path) -> None:
    """Remove temporary folders of `path` that no living process has locked."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp")
    for left in [each for each in path.parent.iterdir() if name.fullmatch(each.name)]:
        with contextlib.suppress(OSError), open_folder(left) as folder:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)


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
