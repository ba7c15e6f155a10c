"""Read the flags of command lines as a command does, without running it.

    python tests/support/parse_lines.py LINES.json

The file has a list of [place, module, [flag, ...]]. Each line is read in a fork of its own, since
flags can be read once. What is wrong is printed, one line each.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def fork(work: Callable[..., bool], *arguments: Any) -> bool:
    """Whether `work` says so, in a process of its own."""
    process = os.fork()
    if process == 0:
        try:
            good = work(*arguments)
            sys.stdout.flush()
        except BaseException as error:
            print(f"{arguments[0]}: {error!r}", flush=True)
            os._exit(1)
        os._exit(not good)
    return os.waitpid(process, 0)[1] == 0


def read_all(module: str, lines: list[tuple[str, str, list[str]]]) -> bool:
    """Whether a command reads all of these lines."""
    importlib.import_module(f"{module}.__main__" if module == "benchmarks" else module)
    good = [fork(read, *line) for line in lines]
    return all(good)


def read(place: str, module: str, given: list[str]) -> bool:
    from experiments import cli

    sys.argv = [module, *given]  # where flags for settings of a config are looked up
    try:
        rest = cli.parse(sys.argv)[1:]
    except SystemExit as error:
        print(f"{place}: {error}")
        return False
    if rest:
        print(f"{place}: unexpected argument '{rest[0]}'")
    return not rest


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    lines = json.loads(Path(sys.argv[1]).read_text())
    modules = sorted({module for _, module, _ in lines})
    read_by = [
        fork(read_all, name, [each for each in lines if each[1] == name]) for name in modules
    ]
    sys.exit(not all(read_by))
