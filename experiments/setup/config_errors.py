"""One line on what a config's own code raises: the file, the line in it, and the error."""

import contextlib
import linecache
import os
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from configs import common
from lora_jax.files.arrays import first_line


@contextlib.contextmanager
def in_one_line(files: Sequence[str]) -> Iterator[None]:
    """Raise a ValueError in place of what the code of these configs raises; all else is as it is.

    A ValueError that a config, a file beside it or one of this project's configs raises by a
    statement of its own says what is wrong with the arguments, and stays the whole message.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if said := _said(error, files):
            raise ValueError(said) from error
        raise


def compiled(name: str) -> tuple[str, ...]:
    """The names that a config's file uses; ValueError, with the line, where it is not Python."""
    try:
        return compile(Path(name).read_bytes(), name, "exec").co_names
    except SyntaxError as error:
        raise ValueError(f"'{name}' is not a config, not even Python: {error}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # of null bytes, of deep nesting
        said = first_line(error)
        raise ValueError(f"'{name}' is not a config, not even Python: {said}") from error


def _said(error: BaseException, files: Sequence[str]) -> str:
    """The line, if an error or one that it comes from was raised in one of these files."""
    for cause in _causes(error):
        frames = traceback.extract_tb(cause.__traceback__)
        inside = [frame for frame in frames if _is_one_of(frame.filename, files)]
        if not inside:
            continue
        if isinstance(cause, ValueError) and _deliberate(frames[-1], inside[-1].filename):
            return " ".join(str(cause).split())
        return (
            f"{_named(inside[-1].filename, files)}, line {inside[-1].lineno}: {first_line(cause)}"
        )
    return ""


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what it was raised from, or while; libraries wrap what a config raises."""
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) and cause not in found:
        found.append(cause)
    return found


def _deliberate(frame: traceback.FrameSummary, file: str) -> bool:
    folders = [Path(each).resolve().parent for each in (file, common.__file__)]
    line = linecache.getline(frame.filename, frame.lineno or 0)
    return Path(frame.filename).resolve().parent in folders and line.strip().startswith("raise ")


def _is_one_of(path: str, files: Sequence[str]) -> bool:
    return any(os.path.abspath(path) == os.path.abspath(file) for file in files)


def _named(path: str, files: Sequence[str]) -> str:
    """The file as it was given."""
    return next(file for file in files if os.path.abspath(path) == os.path.abspath(file))
