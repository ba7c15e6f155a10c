"""The words of messages: the nearest known name, numbers with their nouns, an error in a line."""

import contextlib
import difflib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path


@contextlib.contextmanager
def naming(where: object, *kinds: type[Exception]) -> Iterator[None]:
    """Say where an error of a block is: it becomes a ValueError, `where: message`.

    Args:
      kinds: the errors that become one; a ValueError by default.
    """
    wanted = kinds or (ValueError,)
    try:
        yield
    except wanted as error:
        raise ValueError(f"{where}: {error}") from None


def require_known(name: str, known: Collection[str], wrong: str) -> None:
    """Raise a ValueError unless a name is known; its message is `wrong` and the nearest names."""
    if name not in known:
        raise ValueError(f"{wrong}; nearest: {nearest(name, known)}")


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The known names closest to `name`, as a phrase for an error message."""
    known = list(known)
    return _quoted(close(name, known, count, cutoff=0.3) or known[:count]) or "none"


def close(name: str, known: Iterable[str], count: int = 3, cutoff: float = 0.6) -> list[str]:
    """The known names that are like `name`, the closest first; there may be none.

    Args:
      cutoff: how like they must be, from 0 to 1 (`difflib`).
    """
    # People mostly misspell the end of a path: compare it with ends of the same length.
    depth = name.count("/") + 1
    tails = {"/".join(path.split("/")[-depth:]).lower(): path for path in reversed([*known])}
    return [tails[each] for each in difflib.get_close_matches(name.lower(), tails, count, cutoff)]


def nearest_if_close(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of an error message: `; nearest: 'v5e'`, or nothing if no name is close."""
    found = close(name, known, cutoff=cutoff)
    return f"; nearest: {_quoted(found)}" if found else ""


def nearest_or_all(name: str, known: Collection[str]) -> str:
    """As `nearest_if_close`, or all known names if none is close."""
    return nearest_if_close(name, known) or f": there are {', '.join(known)}"


def nearest_path(path: Path, fits: Callable[[Path], bool]) -> str:
    """The end of an error message on a path that is not there: `; nearest in runs: 'lora'`.

    A folder of the path that is missing, too, is named.

    Args:
      fits: whether a path has the kind that was asked for. Folders are named where none is, and
        where a folder of the path is missing.
    """
    missing = next(each for each in (path, *path.parents) if each.parent.is_dir())
    beside: list[Path] = []
    with contextlib.suppress(OSError):  # a folder that may not be read
        beside = sorted(each for each in missing.parent.iterdir() if each.name[0] != ".")
    wanted = [each for each in beside if missing == path and fits(each)]
    names = [each.name for each in wanted or beside if wanted or each.is_dir()]
    said = "" if missing == path else f"; there is no folder {missing}"
    found = close(missing.name, names)
    return said + (f"; nearest in {missing.parent}: {_quoted(found)}" if found else "")


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def said(error: BaseException) -> str:
    """The first line of an error's message; the name of its type if it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def first_line(error: BaseException) -> str:
    """The type of an error and the first line of its message, 1,000 characters at most."""
    name, message = type(error).__name__, said(error)
    return name if message == name else f"{name}: {message}"[:1000]


def count(number: int, one: str, more: str = "") -> str:
    """A number and its noun: `1 run`, `2 runs`.

    Args:
      more: the plural; by default, the singular and an s.
    """
    return f"{number} {agree(number, one, more or f'{one}s')}"


def joined(names: Sequence[str]) -> str:
    """Names in a sentence: `a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def span(numbers: Collection[int], one: str) -> str:
    """The smallest and the largest number of a noun: `3 seeds`, `3 to 5 seeds`."""
    fewest, most = min(numbers), max(numbers)
    return count(most, one) if fewest == most else f"{fewest} to {most} {one}s"


def agree(number: int, one: str, more: str) -> str:
    """The form of a word that agrees with a number."""
    return one if number == 1 else more
