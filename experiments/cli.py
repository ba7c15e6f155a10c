"""What the commands share: one clear line for a mistake on the command line."""

import re
import sys
from collections.abc import Callable, Sequence
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

    app.run(run, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    for argument in argv:
        found = re.match(r"--?config=([^:]+)", argument)
        if found and not Path(found[1]).is_file():
            known = [str(path) for path in sorted(Path("configs").glob("*.py"))]
            sys.exit(f"error: no config file '{found[1]}'; nearest: {nearest(found[1], known)}")
    try:
        return flags.FLAGS(argv)
    except AttributeError as error:  # a setting that a locked config does not have
        text = " ".join(str(error).strip("'\"").replace("\\n", " ").replace("\\'", "'").split())
        sys.exit(f"error: the config has no setting {text}")
    except flags.Error as error:
        lines = str(error).strip().splitlines()
        causes = [line.strip() for line in lines if re.match(r"\s*ValueError: ", line)]
        sys.exit(f"error: {causes[-1].removeprefix('ValueError: ') if causes else lines[0]}")
