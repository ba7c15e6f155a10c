"""Flipped bits and cut files: each is found, healed, or without effect on what is read.

A change is silent if reading ends without an error or a warning and gives another value than that
of the whole file. The value is all that a reader gets: every array, every number, every text.
"""

import contextlib
import dataclasses
import io
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

OUTCOMES = ("found", "healed", "harmless", "warned", "silent", "unclear")
"""How a reader takes damage.

found     an error of one line
healed    a warning, or the thing is made again, and the value is that of the whole file
harmless  the value is that of the whole file
warned    another value, with a warning
silent    another value, without a word
unclear   another error than one of one line
"""


@dataclasses.dataclass(frozen=True)
class Subject:
    """Files that are read together."""

    name: str
    folder: Path
    """All of them are below it; a copy of it is damaged."""
    files: Callable[[Path], list[Path]]
    """Those of a copy of the folder that are damaged."""
    read: Callable[[Path], Any]
    """What a copy of the folder says, as JSON values; it may change the copy."""
    share: int
    make: Callable[[Path], None] | None = None
    """Makes the folder, if it is not there."""


@dataclasses.dataclass(frozen=True)
class Damage:
    """One change of a file."""

    subject: str
    file: str
    how: str
    """`bit 3 of byte 17` or `cut to 400 of 1,000 bytes`."""
    outcome: str
    said: str
    """The error or the warning."""


def soak(subject: Subject, count: int, seed: int, scratch: Path) -> list[Damage]:
    """Damage files of a subject `count` times, one at a time, and read it."""
    if subject.make is not None and not subject.folder.exists():
        subject.make(subject.folder)
    whole = scratch / "whole"
    shutil.copytree(subject.folder, whole)
    with _quiet():
        value = subject.read(whole)
    shutil.rmtree(whole)
    found = []
    for number in range(count):
        drawn = random.Random(f"{seed} {subject.name} {number}")
        copy = scratch / "copy"
        shutil.copytree(subject.folder, copy)
        files = [each for each in subject.files(copy) if each.stat().st_size]
        path = drawn.choice(files)
        how = spoil(path, drawn)
        outcome, said = _outcome(subject, copy, value)
        name = str(path.relative_to(copy))
        found.append(Damage(subject.name, name, how, outcome, said.replace(str(copy), "...")))
        shutil.rmtree(copy)
    return found


def spoil(path: Path, drawn: random.Random) -> str:
    """Flip a bit of a file, or cut it, one time in three; say how."""
    content = bytearray(path.read_bytes())
    if drawn.random() < 1 / 3:
        kept = drawn.randrange(len(content))
        path.write_bytes(content[:kept])
        return f"cut to {kept:,} of {len(content):,} bytes"
    place, bit = drawn.randrange(len(content)), drawn.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place:,}"


def _outcome(subject: Subject, folder: Path, value: Any) -> tuple[str, str]:
    try:
        with _quiet() as caught:
            found = subject.read(folder)
    except (ValueError, OSError) as error:
        said = str(error)
        return ("found" if said and "\n" not in said else "unclear"), said
    except Exception as error:  # what a reader must not raise
        return "unclear", f"{type(error).__name__}: {error}"
    warned = "; ".join(" ".join(str(each.message).split()) for each in caught)
    if found == value:
        return ("healed" if warned else "harmless"), warned
    return ("warned" if warned else "silent"), warned or difference(value, found)


@contextlib.contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Catch warnings, and keep progress bars and lines from the screen."""
    with warnings.catch_warnings(record=True) as caught, hidden():
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)  # of libraries, and nothing of files
        yield caught


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Print nothing."""
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def difference(one: Any, other: Any, where: str = "") -> str:
    """The first place in which two JSON values differ, with both."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *other]:
            if key not in one or key not in other or one[key] != other[key]:
                return difference(one.get(key), other.get(key), f"{where}.{key}")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for place, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            if mine != theirs:
                return difference(mine, theirs, f"{where}[{place}]")
    return f"{where}: {one!r:.80} became {other!r:.80}"


def counts(found: Sequence[Damage]) -> list[dict[str, Any]]:
    """A row for each subject: how often each outcome was met."""
    rows = []
    for name in dict.fromkeys(each.subject for each in found):
        mine = [each for each in found if each.subject == name]
        tally = Counter(each.outcome for each in mine)
        cut = sum(each.how.startswith("cut") for each in mine)
        head = {"files": name, "tried": len(mine), "cut": cut}
        rows.append(head | {outcome: tally[outcome] for outcome in OUTCOMES})
    return rows


def wrong(found: Sequence[Damage]) -> list[str]:
    """One line for each silent change and each unclear error."""
    return [
        f"{each.subject}, {each.file}, {each.how}: {each.outcome}, {each.said}"
        for each in found
        if each.outcome in ("silent", "unclear")
    ]
