"""The commands: their names, what each does in one line, and the command lines that start them.

A command is a file beside this one that can be run. Its docstring's first line says what it does.
"""

import ast
import sys
from pathlib import Path

PACKAGE = "lora_jax_experiments"
"""The package that starts commands where `experiments` is installed, and is no checkout."""
MOVED = {"bench": "make bench", "soak": "make soak"}
"""Former commands, which are tools of the repository now."""


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
    lines = [f"    {name:{width}}  {said}" for name, said in known.items()]
    return "\n".join(
        [
            f"usage: {shown('COMMAND')} --FLAG=VALUE ...",
            "",
            "Commands:",
            *lines,
            "",
            f"{shown('COMMAND')} --help explains a command and its flags.",
        ]
    )


def require_command(name: str) -> None:
    """Raise a ValueError unless there is a command of this name."""
    if name.startswith("-"):
        raise ValueError(f"no flag {name}; nearest: --help, which lists the commands")
    if name in MOVED:
        raise ValueError(f"no command '{name}'; it is a tool of the repository: {MOVED[name]}")
    if name not in (known := commands()):
        from lora_jax.suggest import nearest  # takes seconds, with all of lora_jax

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
