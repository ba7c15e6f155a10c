"""Report a full disk in one line that names the file, whichever library meets it."""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_ERRORS = (errno.ENOSPC, errno.EDQUOT)
_TEXTS = tuple(os.strerror(number) for number in _ERRORS)
"""The system's messages, which libraries that are not written in Python quote in their errors."""


class FullDiskError(OSError):
    """There was no room to write a file; existing files are unchanged."""

    def __init__(self, path: str | os.PathLike):
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def __str__(self) -> str:
        return (
            f"{self.filename}: the disk or a quota is full; what was saved before is good: "
            "make room and give the same command again, which goes on from there"
        )


def is_full(error: BaseException | None) -> bool:
    """Whether an error was caused by a full disk or a used-up quota."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        known = isinstance(error, OSError) and error.errno in _ERRORS
        if known or any(text in str(error) for text in _TEXTS):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Turn errors of a full disk into a FullDiskError that names the file or folder.

    Raises:
      FullDiskError: instead of any error that a full disk caused.
    """
    try:
        yield
    except FullDiskError:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        raise FullDiskError(path) from error


def require(folder: Path, size: int) -> None:
    """Raise a FullDiskError before writing if a folder has no room for `size` bytes.

    This does not find every case: the file system may not report a quota, for example.
    """
    if shutil.disk_usage(folder).free < size:
        raise FullDiskError(folder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Orbax from logging the traceback of every thread that meets a full disk.

    Some threads log after the first one has already ended the save. Once a disk was full, the
    filter therefore stays for the rest of the process.
    """

    def other(record: logging.LogRecord) -> bool:
        return not (record.exc_info and is_full(record.exc_info[1]))

    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for each in loggers:
        each.addFilter(other)
    full = False
    try:
        yield
    except Exception as error:
        full = is_full(error)
        raise
    finally:
        for each in loggers if not full else ():
            each.removeFilter(other)
