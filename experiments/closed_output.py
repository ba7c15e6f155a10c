"""End without a traceback where what reads a command's output, such as `head`, has ended before."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def ends_quietly() -> Iterator[None]:
    """A command that prints: a pipe that nobody reads any more ends it, as other programs do.

    The exit code is that of a program which SIGPIPE ends. Python ignores that signal.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # else Python writes what is left after all handlers
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
