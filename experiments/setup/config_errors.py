"""Report an error in a config's own code in one line: the file, the line number and the error."""

import contextlib
import linecache
import os
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from configs import common
from configs.common import UnknownArgumentError
from lora_jax.error_text import first_line


@contextlib.contextmanager
def in_one_line(files: Sequence[str]) -> Iterator[None]:
    """Turn an error from the code of these config files into a ValueError of one line.

    Other errors pass unchanged. If a config, a file in its folder or one of this project's configs
    raises a ValueError with its own `raise` statement, the message is kept without file and line.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if said := _said(error, files):
            raise ValueError(said) from error
        raise


def compiled(name: str) -> tuple[str, ...]:
    """Compile a config file and return the names that its code uses.

    Raises:
      ValueError: the file is not Python; the message has the line.
    """
    try:
        return compile(Path(name).read_bytes(), name, "exec").co_names
    except SyntaxError as error:
        raise ValueError(f"'{name}' is not a config, not even Python: {error}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes, deep nesting
        said = first_line(error)
        raise ValueError(f"'{name}' is not a config, not even Python: {said}") from error


def _said(error: BaseException, files: Sequence[str]) -> str:
    """The line to report if the error, or one of its causes, was raised in one of these files."""
    for cause in causes(error):
        frames = traceback.extract_tb(cause.__traceback__)
        inside = [frame for frame in frames if _named(frame.filename, files)]
        if not inside:
            continue
        if isinstance(cause, ValueError) and _deliberate(frames[-1], inside[-1].filename):
            return " ".join(str(cause).split())
        return (
            f"{_named(inside[-1].filename, files)}, line {inside[-1].lineno}: {first_line(cause)}"
        )
    return ""


def causes(error: BaseException) -> list[BaseException]:
    """An error and its chain of causes and contexts, as libraries wrap what a config raises."""
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) and cause not in found:
        found.append(cause)
    return found


def unknown_argument(error: BaseException) -> UnknownArgumentError | None:
    """The error of an unknown argument in an error's chain of causes."""
    found = [each for each in causes(error) if isinstance(each, UnknownArgumentError)]
    return found[-1] if found else None  # the last is the config's own


def _deliberate(frame: traceback.FrameSummary, file: str) -> bool:
    folders = [Path(each).resolve().parent for each in (file, common.__file__)]
    line = linecache.getline(frame.filename, frame.lineno or 0)
    return Path(frame.filename).resolve().parent in folders and line.strip().startswith("raise ")


def _named(path: str, files: Sequence[str]) -> str:
    """The path of one of the files as the user gave it; empty for another file."""
    same = (file for file in files if os.path.abspath(path) == os.path.abspath(file))
    return next(same, "")
