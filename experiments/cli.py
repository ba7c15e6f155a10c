"""Helpers of all commands: run one, and report a mistake in one clear line."""

import itertools
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from experiments.closed_output import ends_quietly
from experiments.command_environment import asks_for_help
from experiments.command_names import shown
from experiments.compilation_cache import keep_programs
from experiments.help_text import help_text, own_flags, settings_text, takes_config
from experiments.setup.config_flags import flag_texts, read, read_config, settings_of, with_all
from lora_jax.files import number_text


def main(command: Callable[[], None]) -> None:
    """Parse the flags and run a command.

    A ValueError, an OSError, a package to be installed or Ctrl-C ends the program with one line. A
    warning is one line on standard error.
    """

    def run(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            sys.exit(f"error: unexpected argument '{argv[1]}'")
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax reports every file that it writes
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show
                keep_programs()
                command()
        except BrokenPipeError:  # `ends_quietly` ends the command
            raise
        except (ValueError, OSError) as error:
            sys.exit(f"error: {_line(error)}")
        except ModuleNotFoundError as error:
            if "pip install" not in str(error):  # a fault, and no package of an extra
                raise
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)

    with ends_quietly():
        app.run(run, flags_parser=parse)


def _line(error: ValueError | OSError) -> str:
    """What an error says; one of the system without Python's number for it."""
    own_text = type(error).__str__ is not OSError.__str__
    if not isinstance(error, OSError) or own_text or not error.strerror:
        return str(error)
    files = [str(each) for each in (error.filename, error.filename2) if each is not None]
    return ": ".join([" -> ".join(files)] * bool(files) + [error.strerror])


def _show(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as one line, without its place in the code."""
    warn(" ".join(str(message).split()))


def warn(said: str) -> None:
    """Print `said` as a warning line on standard error; print nothing if it is empty."""
    if said:
        print(f"warning: {said}", file=sys.stderr)


def parse(argv: Sequence[str]) -> list[str]:
    """Read the flags; exit with one line if a flag or the config file is wrong.

    `--help` prints what the command and its flags do, and exits with code 0.
    """
    try:
        if any(asks_for_help(each) and each not in _OF_ABSL for each in argv[1:]):
            print(_help(argv))
            sys.exit(0)
        rest = read(argv, flags.FLAGS)
        _require_texts(flags.FLAGS)
        _require_home(argv)
        return rest
    except ValueError as error:
        sys.exit(f"error: {error}")


_OF_ABSL = ("--helpfull", "--helpxml")
"""What absl answers itself."""


def _help(argv: Sequence[str]) -> str:
    """The help of the command that this process runs."""
    own = own_flags(flags.FLAGS, sys.argv[0])
    doc = str(sys.modules["__main__"].__doc__)
    said = help_text(doc, own)
    given = _config_flags(argv[1:])
    files = [each.partition("=")[2] for each in given if re.match("--?config=", each)]
    if any(map(takes_config, own)) and files:
        settings = settings_of(with_all(read_config(given)))
        said += f"\n\n{settings_text(files[-1], settings)}"
    example = shown("")
    return said.replace("python -m experiments.", example)


def _config_flags(argv: Sequence[str]) -> list[str]:
    """The flags of a config, each as one argument, such as `--config=FILE` for `--config FILE`."""
    found = []
    for each, following in itertools.pairwise([*argv, ""]):
        takes_next = re.fullmatch(r"--?config(\.[\w.]+)?", each) and following[:1] not in ("", "-")
        if takes_next or re.match("--?config[.=]", each):
            found.append(f"{each}={following}" if takes_next else each)
    return found


def _require_texts(values: flags.FlagValues) -> None:
    """Raise a ValueError for an empty text of a flag without a default, or an empty list."""
    for name in values:
        flag = values[name]
        if flag.present and flag.default is None and flag.value in ("", []):
            raise ValueError(f"--{name} is empty: {_meaning(flag)}")
        if flag.present and flag.value == [] and flag.default:
            raise ValueError(f"--{name} is empty: leave it out for {','.join(flag.default)}")
        empty = flag.value == [] or (flag.value == "" and flag.default)
        if flag.present and empty and not name.startswith("config."):  # an empty setting is one
            raise ValueError(f"--{name} is empty: {_meaning(flag)}")
        if flag.present and isinstance(flag.value, list) and "" in flag.value:
            raise ValueError(f"--{name}={','.join(flag.value)} has an empty entry")


def _require_home(argv: Sequence[str]) -> None:
    """Raise a ValueError for a path in the home folder that the shell has not written out."""
    for name, text in flag_texts(argv[1:]):
        if re.search(r"(^|[=,:])~[\w.-]*/", text) or text == "~":
            raise ValueError(f"--{name}={text}: the shell leaves ~ as it is here: write $HOME")


def _meaning(flag: flags.Flag) -> str:
    said = str(flag.help).rstrip(".")
    return f"{said[0].lower()}{said[1:]}"


def refuse_ignored(ignored: Sequence[flags.FlagHolder[Any]], why: str) -> None:
    """Raise a ValueError if one of these flags is given, which the command would ignore.

    Args:
      why: what the message says of it, such as `it goes with --table`.
    """
    for flag in ignored:
        if flag.present:
            raise ValueError(f"--{flag.name} would be ignored: {why}")


def refuse_all_but(used: Sequence[flags.FlagHolder[Any]], why: str) -> None:
    """As `refuse_ignored`, for all flags of the command but those that are used."""
    names = {flag.name for flag in used}
    for flag in own_flags(flags.FLAGS, sys.argv[0]):
        if flag.present and flag.name not in names:
            raise ValueError(f"--{flag.name} would be ignored: {why}")


def out_folder(text: str) -> Path:
    """The folder that --out names.

    Raises:
      ValueError: it cannot be made, as far as this can be known before it is tried.
    """
    out = Path(text)
    whole = out.absolute()
    there = next(each for each in (whole, *whole.parents) if os.path.lexists(each))
    if not there.is_dir():
        raise ValueError(f"--out={out}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"--out={out}: {there} cannot be written to")
    return out


def run_folder(text: str) -> Path:
    """The folder that --out names for a run, whose config will be given in --config.

    Raises:
      ValueError: as `out_folder`, or --config could not name a file in it.
    """
    if ":" in text:
        raise ValueError(f"--out={text}: --config cannot name a file below a folder with a colon")
    return out_folder(text)


def integers(name: str, values: Sequence[str] | None, example: str = "") -> list[int]:
    """The values of a list flag as whole numbers.

    Args:
      example: a value of the flag, for the message.

    Raises:
      ValueError: a value is not a whole number.
    """
    if not all(re.fullmatch(r"[+-]?[0-9]{1,18}", value) for value in values or ()):
        such = f", such as {example}" if example else ""
        raise ValueError(f"--{name}={','.join(values or ())}: expected whole numbers{such}")
    return [int(value) for value in values or ()]


def numbers(name: str, values: Sequence[str]) -> list[float]:
    """The values of a list flag as numbers.

    Raises:
      ValueError: a value is not a finite number, plainly written.
    """
    found = [number_text.read(value.strip()) for value in values]
    if not found or None in found:
        raise ValueError(f"--{name}={','.join(values)}: expected numbers, such as 0.7,0.3")
    return [float(each) for each in found if each is not None]
