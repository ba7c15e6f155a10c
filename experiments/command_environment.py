"""The environment of a command, which must be there before anything else is imported.

XLA allocates and frees the large arrays of a program in every step. By default, glibc gives them
back to the system each time, in pages of 4 KiB. With the settings of `MALLOC` it keeps them, in
huge pages. glibc reads them when a process starts, so a command starts again with them. A command
that is only asked for its help does not, and a user's own settings, and another malloc, are left
alone.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any

MALLOC = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
}
HELP = ("--help", "-help", "-h", "-?", "--helpshort", "--helpfull", "--helpxml")
OTHERS = ("LD_PRELOAD", "MALLOC_ARENA_MAX", "MALLOC_TOP_PAD_")


def prepare() -> None:
    """Prepare `python -m experiments.COMMAND`; in every other process, do nothing."""
    if sys.argv[0] != "-m":  # what it is while Python looks for the module
        return
    if sys.argv[1:] or sys.orig_argv[-1] != __package__:  # alone, this package lists its commands
        start_again()


def start_again() -> None:
    """Prepare this process for a command: start it again if it lacks settings that it needs."""
    sys.excepthook = _said_in_a_word
    if any(map(asks_for_help, sys.argv[1:])):
        return
    # XLA logs two false errors for each program that the compilation cache holds for a CPU
    # (openxla/xla issue 44565). Errors that matter are exceptions as well.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if settings := missing(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | settings)


def _said_in_a_word(kind: type[BaseException], error: BaseException, where: Any) -> None:
    """What ends a command while it imports, before `cli.main`, and is no fault of the code."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    elif kind.__name__ == "CantOpenFlagFileError":  # read where the flag --config is defined
        print(f"error: {flag_file(error)}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, where)


def flag_file(error: BaseException) -> str:
    """What absl's error on a --flagfile that it cannot open means."""
    cause = error.__context__
    if isinstance(cause, OSError):
        return f"--flagfile={cause.filename}: {cause.strerror}"
    return str(error)


def asks_for_help(argument: str) -> bool:
    """Whether an argument asks a command for its help."""
    return argument in HELP


def missing(environment: Mapping[str, str]) -> dict[str, str]:
    """The settings to add to an environment: all of `MALLOC`, or none."""
    glibc = sys.platform == "linux" and "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    chosen = any(name in environment for name in (*MALLOC, *OTHERS))
    return dict(MALLOC) if glibc and not chosen else {}
