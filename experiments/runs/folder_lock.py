"""One process at a time trains in a folder: two would write every line of its metrics twice."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from lora_jax.records.metrics_log import LostFolderError
from lora_jax.records.run_record import LOCK

GRACE = 0.5  # seconds that the system may take to let go of what a killed process held


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep a folder, made if need be, for this process. What a killed one leaves is no lock.

    A folder that is still empty in the end is not left behind. Where the file system has no locks,
    this goes on without. The folder itself is locked, too: who removes the file of the lock lets no
    second process in; who removes the folder does, and then the first one stops by itself, before
    its next line, checkpoint or record (`lora_jax.records.metrics_log.Metrics`, `Place`).

    Raises:
      ValueError: another process has the folder, or it is a file; nothing in it has been touched.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--workdir {folder} is a file: name a folder")
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        with _locked(folder):
            yield
    finally:
        with contextlib.suppress(OSError):  # the first that is not empty
            for each in made:
                each.rmdir()


class Place:
    """A folder that this process has `alone`, to tell whether the path still is that folder's.

    As long as it is held, no other folder has its number in the file system.
    """

    def __init__(self, folder: Path):
        self.folder, self._was = folder, folder.stat()

    def require(self) -> None:
        """Raise a LostFolderError where the folder was removed, or has another in its place."""
        try:
            same = os.path.samestat(self._was, self.folder.stat())
        except FileNotFoundError:
            same = False
        if not same:
            raise LostFolderError(
                f"--workdir {self.folder} was removed or replaced while its run was going, which "
                "has stopped"
            )


@contextlib.contextmanager
def alone_in(folders: Sequence[Path]) -> Iterator[dict[int, Exception]]:
    """Keep those of the folders that can be had; why others cannot, by their numbers."""
    with contextlib.ExitStack() as stack:
        busy: dict[int, Exception] = {}
        for number, folder in enumerate(folders):
            try:
                stack.enter_context(alone(folder))
            except (ValueError, OSError) as error:
                busy[number] = error
        yield busy


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path, until = folder / LOCK, time.monotonic() + GRACE
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(path.open("a+", encoding="utf-8"))
                itself = stack.enter_context(_opened(folder))
            except FileNotFoundError:
                continue  # the folder went with a run that left nothing
            if not (_taken(file.fileno()) and _taken(itself)):
                if time.monotonic() >= until:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    raise ValueError(
                        f"--workdir {folder}: {holder} is training there; name another folder, or "
                        "end that one and give the same command again"
                    )
                time.sleep(0.05)
                continue
            if not (_named(file.fileno(), path) and _named(itself, folder)):
                continue  # another process had it, and has removed it since it was opened here
            _sign(file)
            try:
                yield
            finally:
                if _named(file.fileno(), path):  # else what is there by now is another process's
                    path.unlink(missing_ok=True)
            return


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _taken(file: int) -> bool:
    """Whether a file's lock is this process's now, or there are no locks to be had."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _sign(file: TextIO) -> None:
    """Say in a file who has it, for the message of others; a full disk takes no such words."""
    with contextlib.suppress(OSError):
        os.truncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())


def _named(file: int, path: Path) -> bool:
    """Whether a name still is that of an open file."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
