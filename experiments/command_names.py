"""The commands: their names and command lines, the environment they need, and a quiet end.

A command is a file beside this one that can be run. Its docstring's first line says what it does.

XLA allocates and frees the large arrays of a program in every step. By default, glibc gives them
back to the system each time, in pages of 4 KiB. With the settings of `MALLOC` it keeps them, in
huge pages. glibc reads them when a process starts, so a command starts again with them. A command
that is only asked for its help does not, and a user's own settings, and another malloc, are left
alone.
"""

import ast
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PACKAGE = "lora_jax_experiments"
"""The package that starts commands where `experiments` is installed, and is not a checkout."""
FIRST = (
    *("quickstart", "train", "predict", "sweep", "tune", "report", "export", "import_adapter"),
    *("serve", "plan", "instruct"),
)
"""What a newcomer looks for, in this order; the list has all other commands below these."""
MOVED = {
    "bench": "it is a tool of the repository: make bench",
    "memory": "plan does this: give it --published, or --config and --methods",
    "worker": "a sweep starts it, as python -m experiments.sweeps.worker",
    "soak": "it is a tool of the repository: make soak",
}
"""Former commands, and where they went."""


def commands() -> dict[str, str]:
    """The first line of the docstring of each command, by name."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path.stem != "__main__" and '\nif __name__ == "__main__":\n' in text:
            found[path.stem] = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return found


def listing() -> str:
    """All commands, each in a line, and how to ask for their flags."""
    known = commands()
    width = max(map(len, known))
    lines = {name: f"    {name:{width}}  {said}" for name, said in known.items()}
    first = [lines.pop(name) for name in FIRST if name in lines]
    return "\n".join(
        [
            f"usage: {shown('COMMAND')} --FLAG=VALUE ...",
            "",
            "Commands:",
            *first,
            "",
            "For single questions, for documents and for launchers:",
            *lines.values(),
            "",
            f"{shown('COMMAND')} --help explains a command and its flags.",
        ]
    )


def require_command(name: str) -> None:
    """Raise a ValueError unless there is a command of this name."""
    if name.startswith("-"):
        raise ValueError(f"no flag {name}; nearest: --help, which lists the commands")
    if name in MOVED:
        raise ValueError(f"no command '{name}'; {MOVED[name]}")
    if name not in (known := commands()):
        from lora_jax.messages import nearest  # takes seconds, with all of lora_jax

        every = "lora-jax" if installed() else "python -m experiments"
        raise ValueError(f"no command '{name}'; nearest: {nearest(name, known)}; {every} lists all")


def command_line(name: str) -> list[str]:
    """The arguments that start a command, or another module of `experiments`, in a new process.

    They work in any folder where `experiments` is installed, and in that of the checkout otherwise.
    """
    own = [PACKAGE, name] if installed() else [f"experiments.{name}"]
    return [sys.executable, "-m", *own]


def shown(name: str) -> str:
    """How a user calls a command: `lora-jax train`, or `python -m experiments.train`."""
    return f"lora-jax {name}" if installed() else f"python -m experiments.{name}"


def installed() -> bool:
    """Whether this process was started by `lora-jax`."""
    return PACKAGE in sys.modules


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
    if (name := _module_asked_for()) in MOVED:
        sys.exit(f"error: no command '{name}'; {MOVED[name]}")
    if sys.argv[1:] or sys.orig_argv[-1] != __package__:  # alone, this package lists its commands
        start_again()


def _module_asked_for() -> str:
    """The name of the command in `python -m experiments.NAME`, while Python looks for it."""
    module = next((each for each in sys.orig_argv if each.startswith(f"{__package__}.")), "")
    return module.partition(".")[2]


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
    """What ends a command while it imports, before `cli.main`, and is not a fault of the code."""
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
