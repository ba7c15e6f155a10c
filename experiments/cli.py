"""Helpers of all commands: run one, print its help, and report a mistake in one clear line."""

import hashlib
import itertools
import os
import platform
import re
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from experiments.command_names import asks_for_help, ends_quietly, shown
from experiments.setup.config_flags import flag_texts, read, read_config, settings_of, with_all
from lora_jax.files import number_text
from lora_jax.files.published_paths import cache_folder
from lora_jax.records.environment import processor


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
    modules = flags.FLAGS.flags_by_module_dict().items()
    folded = [flag for name, found in modules if name.startswith(LAUNCHERS) for flag in found]
    said = help_text(doc, own, folded)
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


WIDTH = 100
_INDENT = " " * 8
_ADDED = r"^<[^>]*>: |;\s+repeat this option to specify a list of values.*$"
"""What absl adds to the help of flags with several values."""


LAUNCHERS = "experiments.sweeps.launchers."
"""The modules whose flags are only named in a command's help, as a sweep has many of them."""


def help_text(doc: str, own: Sequence[flags.Flag], folded: Sequence[flags.Flag] = ()) -> str:
    """The help of a command.

    Args:
      doc: the docstring of the command, with an example.
      own: its flags, in the order to show them.
      folded: those that are named in one line, and not explained.
    """
    parts = [doc.strip(), "", "Flags:"]
    names = [f"--{flag.name}" for flag in folded]
    for flag in own:
        if f"--{flag.name}" not in names:
            parts += [f"    {usage(flag)}", *_wrapped(meaning(flag))]
    if names:
        where = "of the launchers; docs/guides/launchers.md and --helpfull explain them."
        parts += [f"    {', '.join(names)}", *_wrapped(f"Flags {where}")]
    if any(map(takes_config, own)):
        parts += [
            "    --config.SECTION.SETTING=VALUE",
            *_wrapped(
                "Change a setting of the config, such as --config.optimizer.learning_rate=1e-4. "
                "With --help beside --config=FILE, all settings of that file are listed."
            ),
        ]
    return "\n".join([*parts, "", "--helpfull lists all flags, also those of the libraries."])


def own_flags(values: flags.FlagValues, main: str) -> list[flags.Flag]:
    """The flags of a command and of the modules of `experiments` that it uses, as they are defined.

    Args:
      main: the name of the command's module, which absl takes from the command line.
    """
    modules = values.flags_by_module_dict()
    shared = [name for name in sorted(modules) if name.startswith("experiments.") and name != main]
    return [flag for name in (main, *shared) for flag in modules.get(name, ())]


_VALUES = (
    (ConfigFileFlagParser, "FILE[:ARGUMENT=VALUE,...]"),
    (flags.IntegerParser, "INTEGER"),
    (flags.FloatParser, "NUMBER"),
    (flags.ListParser, "A,B,..."),
)
"""What stands for a value, by the kind of a flag's parser."""


def usage(flag: flags.Flag) -> str:
    """How a flag is written: `--size=full|smoke`, `--[no]audit`."""
    if flag.boolean:
        return f"--[no]{flag.name}"
    if isinstance(flag.parser, flags.EnumParser):
        return f"--{flag.name}={'|'.join(flag.parser.enum_values)}"
    value = next((text for kind, text in _VALUES if isinstance(flag.parser, kind)), "TEXT")
    return f"--{flag.name}={value}"


def meaning(flag: flags.Flag) -> str:
    """What a flag does, its default, and whether it can be repeated."""
    said = re.sub(_ADDED, "", " ".join(str(flag.help).split()))
    said += "" if said.endswith((".", "!")) else "."
    more = []
    if isinstance(flag, flags.MultiFlag):
        more.append("The flag may be given several times.")
    if is_required(flag):
        more.append("The flag is required.")
    elif "default" not in said:
        more.append(_default(flag))
    return " ".join([said, *more])


def _default(flag: flags.Flag) -> str:
    if flag.boolean:
        return f"The default is --{'' if flag.default else 'no'}{flag.name}."
    if flag.default in (None, "", [], ()):
        return "There is no default."
    lists = isinstance(flag.parser, flags.ListParser)
    return f"The default is {','.join(flag.default) if lists else flag.default}."


def is_required(flag: flags.Flag) -> bool:
    """Whether a command cannot run without a flag."""
    return any("must have a value other than None" in each.message for each in flag.validators)


def takes_config(flag: flags.Flag) -> bool:
    """Whether a flag's value is a config, of which further flags change settings."""
    return isinstance(flag.parser, ConfigFileFlagParser)


def settings_text(given: str, settings: Mapping[str, Any]) -> str:
    """The settings of a config, each as the flag that sets it.

    Args:
      given: what `--config` was given.
      settings: the values by dotted name.
    """
    lines = [f"    --config.{name}={value}" for name, value in settings.items()]
    return "\n".join([f"Settings of {given}:", *lines])


def _wrapped(said: str) -> list[str]:
    return textwrap.wrap(
        said, WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False
    )


FOLDER = "jax_compilation_cache_dir"
MOST = 2 * 2**30
"""Bytes of programs to keep; those that were used least recently make room."""


def keep_programs() -> None:
    """Use JAX's compilation cache in the user's cache folder; a user's own choice is left alone."""
    if "JAX_ENABLE_COMPILATION_CACHE" in os.environ or getattr(jax.config, FOLDER):
        return
    settings = {
        FOLDER: str(cache_folder() / "programs" / machine()),
        "jax_compilation_cache_max_size": MOST,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)


def machine() -> str:
    """A name for what programs are compiled for, which JAX's own keys lack: the processor.

    A program for another one can stop a process with an illegal instruction.
    """
    kinds = [platform.machine(), platform.processor(), version("jaxlib")]
    said = "\n".join([*kinds, *processor("model name", "flags", "Features")])
    return hashlib.sha256(said.encode()).hexdigest()[:16]
