"""Kill the project's commands, damage their files, and compare what they leave, bit by bit.

    make soak ARGS="--kills=20 --damaged=50"
    make soak ARGS="--commands=train --kills=5 --files= --scratch=runs/soak"

Kills: a command is killed one to three times in a folder, then given again until it ends. Half of
the kills come at a drawn time, the other half before a drawn change of a file, so that any step of
saving is met; those of a sweep are half of its worker. The results must be the same bits as without
kills. Damage: a bit of a file is flipped, or the file is cut; `damage.py` says what must come of
it. The seed draws all moments and bits. Exit code 0 means that nothing was lost or silently
changed, and that each error was one line.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import commands
import damage
import kills
import small_study

CACHES = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
"""Let the caches of the soak keep all programs, about which XLA says nothing."""


def names(text: str) -> list[str]:
    return [each for each in text.split(",") if each]


def shares(count: int, parts: int) -> list[int]:
    """A number divided into parts that differ by one at most."""
    return [count * (part + 1) // parts - count * part // parts for part in range(parts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    every = kills.works(Path(), Path())
    files = damage.subjects(Path(), Path(), Path())
    parser.add_argument("--commands", type=names, default=[*every], help=", ".join(every))
    parser.add_argument("--kills", type=int, default=20, help="of all commands")
    parser.add_argument("--files", type=names, default=[*files], help="what is damaged")
    parser.add_argument("--damaged", type=int, default=50, help="how many files are damaged")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, help="a new folder for what is trained")
    given = parser.parse_args()
    for name, known in (("commands", every), ("files", files)):
        for each in getattr(given, name):
            if each not in known:
                parser.error(f"--{name}={each}: expected some of {', '.join(known)}")
    scratch = (given.scratch or Path(tempfile.mkdtemp(prefix="soak-"))).resolve()
    caches = {"XDG_CACHE_HOME": "caches", "JAX_COMPILATION_CACHE_DIR": "caches/programs"}
    os.environ.update(CACHES | {name: str(scratch / place) for name, place in caches.items()})
    inputs, finished = small_study.write_inputs(scratch / "inputs"), scratch / "finished"
    ended = commands.run(*small_study.train(inputs, finished))
    if ended.returncode:
        raise RuntimeError(f"the tiny run fails: {ended.stderr}")

    bad = []
    for line, good in done(given, inputs, finished, scratch):
        print(line, flush=True)
        bad += [] if good else [line]
    if given.scratch is None and not bad:
        shutil.rmtree(scratch)
        print("0 wrong")
    else:
        print("\n".join([f"{len(bad)} wrong; what was trained is in {scratch}", *bad]))
    sys.exit(bool(bad))


def done(
    given: argparse.Namespace, inputs: Path, finished: Path, scratch: Path
) -> Iterator[tuple[str, bool]]:
    """Do all that was asked for; a line for each try, and whether it went well."""
    works = kills.works(inputs, finished)
    for name, count in zip(given.commands, shares(given.kills, len(given.commands)), strict=True):
        yield from kills.rounds(name, works[name], count, given.seed, scratch / f"kills-{name}")
    subjects = damage.subjects(inputs, finished, scratch / "damage")
    for name, count in zip(given.files, shares(given.damaged, len(given.files)), strict=True):
        yield from damage.tries(name, subjects[name], count, given.seed, scratch / "tried" / name)


if __name__ == "__main__":
    main()
