"""Find a tracker by the name of its module."""

import importlib
import importlib.util
import pkgutil

from experiments.tracking.tracker import Tracker

TRACKERS = "experiments.tracking.trackers"


def names() -> list[str]:
    """The names of the project's own trackers: the files of `trackers/`."""
    folder = importlib.import_module(TRACKERS)
    return sorted(module.name for module in pkgutil.iter_modules(folder.__path__))


def find(name: str) -> type[Tracker]:
    """The tracker in `trackers/NAME.py`, or in the module that a dotted name imports.

    Raises:
      ModuleNotFoundError: there is no such module, or it imports one that is not there.
      ValueError: the module does not define exactly one tracker.
    """
    full_name = name if "." in name else f"{TRACKERS}.{name}"
    module = importlib.import_module(full_name)
    kinds = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Tracker)
        and value.__module__ == module.__name__
    ]
    if len(kinds) != 1:
        raise ValueError(f"'{full_name}' must define one Tracker, and defines {len(kinds)}")
    return kinds[0]


def is_installed(package: str) -> bool:
    """Whether a package could be imported, without doing so; an empty name is no package."""
    try:
        return not package or importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of a package that would hold it
        return False
