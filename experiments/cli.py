"""What the commands share: one clear line for a mistake on the command line."""

import itertools
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict

from experiments import config_errors
from lora_jax import number_text
from lora_jax.partition import nearest

_CAUSE = r"\s*(?:ValueError|TypeError): (.*\S)"
"""How the flags' library quotes what a value's parser raised."""


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


def read(argv: Sequence[str], values: flags.FlagValues) -> list[str]:
    """Read flags into `values`.

    Raises:
      ValueError: one line on the flag, or the config's file, that is wrong.
    """
    files = list(_config_files(argv))
    for name in files:
        _check_config_file(name)
    with config_errors.in_one_line(files):
        rest = _parsed(argv, values)
        if files:
            _check_config(files[-1], values["config"].value)
    _check_numbers(argv, values)
    return rest


def _parsed(argv: Sequence[str], values: flags.FlagValues) -> list[str]:
    try:
        return values(argv)
    except (AttributeError, KeyError, TypeError) as error:  # what a locked config does not have
        if isinstance(error, TypeError) or "does not support indexing" in str(error):
            raise ValueError("a flag names a setting inside of one that is no section") from error
        text = " ".join(str(error).strip("'\"").replace("\\n", " ").replace("\\'", "'").split())
        raise ValueError(f"the config has no setting {text}") from error
    except flags.Error as error:
        lines = str(error).strip().splitlines()
        causes = [found[1] for line in lines if (found := re.match(_CAUSE, line))]
        raise ValueError(causes[-1] if causes else lines[0]) from error


def _check_numbers(argv: Sequence[str], values: flags.FlagValues) -> None:
    """Raise a ValueError where a flag has been read as a number that is not plainly one."""
    for argument, following in itertools.pairwise([*argv, ""]):
        found = re.fullmatch(r"--?([\w.]+)(?:=(.*))?", argument, re.DOTALL)
        if not found or found[1] not in values:
            continue
        name, text = found[1], following if found[2] is None else found[2]
        match values[name].value:
            case bool() | str() | None:
                numbers = []
            case int() | float():
                numbers = [text.strip()]
            case _:  # of a config's settings, tuples and sections are Python's literals
                numbers = number_text.inside(text) if name.startswith("config.") else []
        for number in numbers:
            if number_text.read(number) is None:
                raise ValueError(
                    f"flag --{name}={text}: '{number}' is not a number that a float holds, plainly "
                    "written, such as 10 or 3e-4"
                )


def integers(name: str, values: Sequence[str] | None) -> list[int]:
    """The whole numbers of a flag that lists them.

    Raises:
      ValueError: one that is none.
    """
    if not all(re.fullmatch(r"[+-]?[0-9]{1,18}", value) for value in values or ()):
        raise ValueError(f"--{name}={','.join(values or ())}: expected whole numbers")
    return [int(value) for value in values or ()]


def _config_files(argv: Sequence[str]) -> Iterator[str]:
    """What `--config=FILE:arguments` or `--config FILE:arguments` names."""
    for argument, following in itertools.pairwise([*argv, ""]):
        if found := re.fullmatch(r"--?config(?:=(.*))?", argument):
            value = following if found[1] is None else found[1]
            yield value.partition(":")[0]


def _check_config_file(name: str) -> None:
    """Raises a ValueError where a file is no config, before anything in it is executed."""
    if not Path(name).is_file():
        raise ValueError(f"no config file '{name}'; nearest: {nearest(name, _configs())}")
    if "get_config" not in config_errors.compiled(name):
        near = nearest(name, _configs())
        raise ValueError(f"'{name}' is not a config: it has no get_config; nearest: {near}")


def _check_config(name: str, config: Any) -> None:
    """Raise a ValueError where a file has given no config."""
    if isinstance(config, ConfigDict):
        return
    try:
        getattr(config, "lock", None)  # in a config's place, an OSError waits for its first use
    except OSError as error:
        said = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"'{name}' gives no config: {said}") from error
    kind = type(config).__name__
    raise ValueError(f"'{name}': get_config() returns a {kind}, expected a ConfigDict")


def _configs() -> list[str]:
    files = sorted(Path("configs").glob("*.py"))
    return [str(path) for path in files if b"def get_config" in path.read_bytes()]
