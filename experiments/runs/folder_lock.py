"""Lock a run's folder, so that only one process at a time trains there.

Two processes would write every line of the metrics twice.
"""

import contextlib
import fcntl
import functools
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from experiments.runs.packing import require_loose
from experiments.setup import processes
from lora_jax.files.atomic import open_folder
from lora_jax.records.metrics_log import LostFolderError
from lora_jax.records.run_record import LOCK

GRACE = 0.5  # seconds to wait for the system to free the lock of a killed process


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lock a folder for this process; create it if needed.

    The system frees the lock when the process dies. A new folder that is still empty in the end is
    removed. If the file system has no locks, this continues without one.

    Both the lock file and the folder are locked. So removing the lock file does not let a second
    process in. Removing the folder does; the first process then stops before its next line,
    checkpoint or record (`lora_jax.records.metrics_log.Metrics`, `HeldFolder`).

    Raises:
      ValueError: another process has the folder, or it is a file, or its run is packed; nothing in
        it has been changed.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--workdir {folder} is a file: name a folder")
    require_loose(folder)
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        with _locked(folder):
            yield
    finally:
        with contextlib.suppress(OSError):  # stops at the first that is not empty
            for each in made:
                each.rmdir()


class HeldFolder:
    """A folder that this process holds with `alone`, to check that its path is still that folder.

    While the folder is held, no other folder gets its inode number.
    """

    def __init__(self, folder: Path):
        self.folder, self._was = folder, folder.stat()

    def require(self) -> None:
        """Raise a LostFolderError if the folder was removed or replaced."""
        try:
            same = os.path.samestat(self._was, self.folder.stat())
        except FileNotFoundError:
            same = False
        if not same:
            raise LostFolderError(
                f"--workdir {self.folder} was removed or replaced during its run, which has stopped"
            )


@contextlib.contextmanager
def alone_in(folders: Sequence[Path]) -> Iterator[dict[int, Exception]]:
    """Lock those folders that can be locked; give the errors of the others, by number.

    Of several processes, the writing one locks; all must call this.
    """
    with contextlib.ExitStack() as stack:
        busy: dict[int, Exception] = {}
        for number, folder in enumerate(folders):
            try:
                processes.first(functools.partial(stack.enter_context, alone(folder)))
            except (ValueError, OSError) as error:
                busy[number] = error
        yield busy


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path, until = folder / LOCK, time.monotonic() + GRACE
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            said = f"{error.filename}: {error.strerror}"
            raise ValueError(f"--workdir {folder} cannot be made ({said})") from error
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(path.open("a+", encoding="utf-8"))
                itself = stack.enter_context(open_folder(folder))
            except FileNotFoundError:
                continue  # another run has just removed its empty folder
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
                continue  # another process has removed it since it was opened here
            _sign(file)
            try:
                yield
            finally:
                if _named(file.fileno(), path):  # else it is another process's file by now
                    path.unlink(missing_ok=True)
            return


def _taken(file: int) -> bool:
    """Try to lock a file; True if this process has the lock now, or there are no locks here."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _sign(file: TextIO) -> None:
    """Write the holder into the lock file, for the messages of others; ignore a full disk."""
    with contextlib.suppress(OSError):
        os.truncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())


def _named(file: int, path: Path) -> bool:
    """Whether a path still names this open file."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
