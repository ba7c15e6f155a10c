"""The limit of open files of a process (`ulimit -n`), which a job of many trials reaches."""

import resource
import sys

PER_TRIAL = 4
"""Files that are open while a trial trains: the locks of it and of its folder, and its metrics."""
LEAST, ENOUGH = 64, 1024
"""Files for all else: without the first number no process trains, and the second is plenty."""


def limit(trials: int, soft: int, hard: int) -> int:
    """The limit for a process that trains so many trials: its own, or a higher one if needed.

    Args:
      soft: the number of files at which opening another fails now.
      hard: the number to which the process may raise it.

    Raises:
      ValueError: the process may not have as many files as the trials need.
    """
    if hard < (needed := PER_TRIAL * trials + LEAST):
        raise ValueError(
            f"a job of {trials} trials opens {needed} files or more, and this process may open "
            f"{hard} (`ulimit -Hn`): lower --per_job (with --search, --per_round or --trials)"
        )
    return max(soft, min(PER_TRIAL * trials + ENOUGH, hard))


def own() -> tuple[int, int]:
    """The soft and the hard limit of this process, and of those that it starts."""
    soft, hard = map(_number, resource.getrlimit(resource.RLIMIT_NOFILE))
    return soft, hard


def _number(files: int) -> int:
    return sys.maxsize if files == resource.RLIM_INFINITY else files


def allow(trials: int) -> None:
    """Let this process open as many files as trials need; a ValueError as of `limit`."""
    soft, hard = own()
    if (wanted := limit(trials, soft, hard)) == soft:
        return
    try:
        _, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, highest))
    except (OSError, ValueError):  # macOS allows fewer than its hard limit says
        limit(trials, soft, soft)
