"""What the commands share: one clear line for a mistake on the command line."""

import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import app, flags, logging

from lora_jax.partition import nearest


def main(command: Callable[[], None]) -> None:
    """Parse the flags and run a command; what a user can mend ends with one line."""

    def run(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            sys.exit(f"error: unexpected argument '{argv[1]}'")
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax reports every file that it writes
        try:
            command()
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")

    app.run(run, flags_parser=parse)


def parse(argv: Sequence[str]) -> list[str]:
    """Read the flags; one line ends the program where a flag, or the config's file, is wrong."""
    for name in _config_files(argv):
        _check_config_file(name)
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:  # what a locked config does not have
        text = " ".join(str(error).strip("'\"").replace("\\n", " ").replace("\\'", "'").split())
        sys.exit(f"error: the config has no setting {text}")
    except flags.Error as error:
        lines = str(error).strip().splitlines()
        causes = [line.strip() for line in lines if re.match(r"\s*ValueError: ", line)]
        sys.exit(f"error: {causes[-1].removeprefix('ValueError: ') if causes else lines[0]}")


def _config_files(argv: Sequence[str]) -> Iterator[str]:
    """What `--config=FILE:arguments` or `--config FILE:arguments` names."""
    for argument, following in itertools.pairwise([*argv, ""]):
        if found := re.fullmatch(r"--?config(?:=(.*))?", argument):
            value = following if found[1] is None else found[1]
            yield value.partition(":")[0]


def _check_config_file(name: str) -> None:
    """Ends with one line where a file is no config, before anything in it is executed."""
    files = sorted(Path("configs").glob("*.py"))
    known = [str(path) for path in files if "def get_config" in path.read_text(encoding="utf-8")]
    if not Path(name).is_file():
        sys.exit(f"error: no config file '{name}'; nearest: {nearest(name, known)}")
    try:
        names = compile(Path(name).read_bytes(), name, "exec").co_names
    except (SyntaxError, ValueError) as error:
        sys.exit(f"error: '{name}' is not a config, not even Python: {error}")
    if "get_config" not in names:
        near = nearest(name, known)
        sys.exit(f"error: '{name}' is not a config: it has no get_config; nearest: {near}")
