"""What the commands share: one clear line for a mistake on the command line."""

import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from experiments.setup.read_config import read


def main(command: Callable[[], None]) -> None:
    """Parse the flags and run a command; what a user can mend ends with one line.

    A warning is one line on standard error.
    """

    def run(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            sys.exit(f"error: unexpected argument '{argv[1]}'")
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax reports every file that it writes
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show
                command()
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")

    app.run(run, flags_parser=parse)


def _show(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line: where in the code it comes from helps nobody who gave a command."""
    warn(" ".join(str(message).split()))


def warn(said: str) -> None:
    """A line on standard error, if there is something to say."""
    if said:
        print(f"warning: {said}", file=sys.stderr)


def parse(argv: Sequence[str]) -> list[str]:
    """Read the flags; one line ends the program where a flag, or the config's file, is wrong."""
    try:
        return read(argv, flags.FLAGS)
    except ValueError as error:
        sys.exit(f"error: {error}")


def integers(name: str, values: Sequence[str] | None) -> list[int]:
    """The whole numbers of a flag that lists them.

    Raises:
      ValueError: one that is none.
    """
    if not all(re.fullmatch(r"[+-]?[0-9]{1,18}", value) for value in values or ()):
        raise ValueError(f"--{name}={','.join(values or ())}: expected whole numbers")
    return [int(value) for value in values or ()]
