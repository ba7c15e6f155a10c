"""A full disk, said in one line that names the file, whatever library meets it."""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_ERRORS = (errno.ENOSPC, errno.EDQUOT)
_TEXTS = tuple(os.strerror(number) for number in _ERRORS)
"""What libraries that are not written in Python quote."""


class FullDiskError(OSError):
    """There was no room to write a file; files that were there before are as they were."""

    def __init__(self, path: str | os.PathLike):
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def __str__(self) -> str:
        return (
            f"{self.filename}: the disk is full, or a quota is; what was saved before is good: "
            "make room, and the same command goes on from there"
        )


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk, or a quota that is used up, is what an error comes from."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, OSError) and error.errno in _ERRORS:
            return True
        if any(text in str(error) for text in _TEXTS):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Say which file or folder it is that a full disk has no room for.

    Raises:
      FullDiskError: in the place of any error that comes from a full disk.
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
    """Raise a FullDiskError where a folder has no room for so many bytes, before they are written.

    What the file system says is not all: a quota, say, it may not know of.
    """
    if shutil.disk_usage(folder).free < size:
        raise FullDiskError(folder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Orbax from logging the traceback of every thread that meets a full disk.

    Some of them do so after the first has ended the saving: where one has, they are kept from it to
    the end.
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
