"""`python -m experiments` lists the commands; `python -m experiments train` runs one.

`python -m experiments --version` prints the version of lora-jax.
"""

import runpy
import sys
from importlib.metadata import version

from experiments import command_names
from experiments.command_names import ends_quietly


def main() -> None:
    with ends_quietly():
        if not sys.argv[1:] or command_names.asks_for_help(sys.argv[1]):
            print(command_names.listing())
            return
        if sys.argv[1] == "--version":
            print(version("lora-jax"))
            return
    name = sys.argv.pop(1)
    try:
        # Commands start further modules of this package in the same way; those have a dot.
        if "." not in name:
            command_names.require_command(name)
    except ValueError as error:
        sys.exit(f"error: {error}")
    command_names.start_again()
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
