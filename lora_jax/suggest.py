"""The known name that is closest to a misspelt one, for errors."""

import contextlib
import difflib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path


def require_known(name: str, known: Collection[str], wrong: str) -> None:
    """Raise a ValueError unless a name is known; its message is `wrong` and the nearest names."""
    if name not in known:
        raise ValueError(f"{wrong}; nearest: {nearest(name, known)}")


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The known names closest to `name`, as a phrase for an error message."""
    known = list(known)
    # People mostly misspell the end of a path: compare it with ends of the same length.
    depth = name.count("/") + 1
    tails = {"/".join(path.split("/")[-depth:]).lower(): path for path in reversed(known)}
    close = difflib.get_close_matches(name.lower(), list(tails), n=count, cutoff=0.3)
    found = [tails[tail] for tail in close] or known[:count]
    return ", ".join(f"'{path}'" for path in found) or "none"


def nearest_or_all(name: str, known: Collection[str]) -> str:
    """The end of an error message: `; nearest: 'v5e'` if any is close, or else all known names."""
    close = difflib.get_close_matches(name.lower(), known, cutoff=0.6)
    return f"; nearest: {nearest(name, known)}" if close else f": there are {', '.join(known)}"


def nearest_path(path: Path, fits: Callable[[Path], bool]) -> str:
    """The end of an error message on a path that is not there: `; nearest in runs: 'lora'`.

    Args:
      fits: whether a path is of the kind that was asked for. Folders are named where none is, and
        where a folder of the path is missing.
    """
    missing = next(each for each in (path, *path.parents) if each.parent.is_dir())
    beside: list[Path] = []
    with contextlib.suppress(OSError):  # a folder that may not be read
        beside = sorted(each for each in missing.parent.iterdir() if each.name[0] != ".")
    wanted = [each for each in beside if missing == path and fits(each)]
    names = [each.name for each in wanted or beside if wanted or each.is_dir()]
    return f"; nearest in {missing.parent}: {nearest(missing.name, names)}" if names else ""
