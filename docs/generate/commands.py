"""A page for each command, `python -m experiments.X`: its docstring and its flags.

Commands define flags of the same names, so each is imported in a process of its own: a fork of one
that has imported what all of them import.
"""

import concurrent.futures
import dataclasses
import importlib
import multiprocessing
import textwrap
from collections.abc import Iterator

from docs.generate.docstrings import escaped, paragraph
from docs.generate.rst import fenced, heading, table
from experiments import cli, command_names


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag of a command, as texts."""

    usage: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Command:
    """A command, its docstring, and the flags that it and the modules of `experiments` define."""

    name: str
    docstring: str
    flags: list[Flag]


def read() -> list[Command]:
    """All commands, from their code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.runs.run"])
    with concurrent.futures.ProcessPoolExecutor(
        max_workers=1, mp_context=context, max_tasks_per_child=1
    ) as processes:
        return list(processes.map(_read, command_names.commands()))


def pages() -> Iterator[tuple[str, str]]:
    """The name and text of each page."""
    commands = read()
    yield "index.rst", _index(commands)
    for command in commands:
        yield f"{command.name}.rst", _page(command)


def _read(name: str) -> Command:
    from absl import flags

    module = importlib.import_module(f"experiments.{name}")
    own = cli.own_flags(flags.FLAGS, module.__name__)
    found = [Flag(cli.usage(each), cli.meaning(each)) for each in own]
    return Command(name, module.__doc__ or "", found)


def _index(commands: list[Command]) -> str:
    rows = [(f":doc:`{c.name}`", escaped(c.docstring.strip().partition("\n")[0])) for c in commands]
    listed = "\n".join(f"   {command.name}" for command in commands)
    parts = [
        heading("Commands", "="),
        "Each runs from the root of the repository, as ``python -m experiments.NAME``, or as "
        "``lora-jax NAME`` where a wheel is installed. A mistake ends a command with one line, "
        "before anything is trained or overwritten.",
        table(("command", "what it does"), rows),
        f".. toctree::\n   :hidden:\n\n{listed}",
    ]
    return "\n\n".join(parts) + "\n"


def _page(command: Command) -> str:
    rows = [(f"``{flag.usage}``", escaped(flag.meaning)) for flag in command.flags]
    parts = [heading(command.name, "="), *_said(command.docstring)]
    if rows:
        parts += [heading("Flags", "-"), table(("flag", "meaning"), rows)]
    return "\n\n".join(parts) + "\n"


def _said(docstring: str) -> Iterator[str]:
    """A command's docstring, whose indented paragraphs are command lines."""
    for block in textwrap.dedent(docstring.strip()).split("\n\n"):
        if block.startswith(" "):
            yield fenced("bash", textwrap.dedent(block))
        else:
            yield paragraph(block)
