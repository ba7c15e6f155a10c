"""The known name that is closest to a misspelt one, for errors."""

import difflib
from collections.abc import Collection, Iterable


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
