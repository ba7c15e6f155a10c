"""Where published files are: in installed packages, in the cache, and where entries lead."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any


def inside(file: Path, entry: Any) -> Path:
    """The path that an entry of a published file names, in that file's folder or below it.

    Links from the Hub's cache to the blobs beside its snapshots are allowed.

    Raises:
      ValueError: the entry is not a file name, is absolute, goes upwards, or is a link to
        elsewhere. The message names the file and the entry.
    """
    try:
        known = isinstance(entry, str) and entry.strip() and b"\0" not in entry.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        known = False
    if not known:
        raise ValueError(f"{file}: {entry!r} is not the name of a file")
    # Windows rules also cover POSIX paths: no name needs a backslash.
    parts = PureWindowsPath(entry)
    path = file.parent / entry
    if parts.anchor or ".." in parts.parts or not _resolves_inside(path, file.parent):
        raise ValueError(f"{file}: {entry!r} leads out of the folder that it is published in")
    return path


def _resolves_inside(path: Path, folder: Path) -> bool:
    try:
        return any(path.resolve().is_relative_to(home) for home in _homes(folder.resolve()))
    except (OSError, RuntimeError):  # links in a circle
        return False


def _homes(folder: Path) -> Iterator[Path]:
    """Where a folder's files may lie: in it, or in `blobs` of `MODEL/snapshots/REVISION`."""
    yield folder
    for each in (folder, *folder.parents):
        if each.parent.name == "snapshots":
            yield (each.parent.parent / "blobs").resolve()


def installed(package: str, inside: str) -> list[Path]:
    """The places of a file or folder in an installed package; empty if it is in none."""
    spec = importlib.util.find_spec(package)  # finds, does not import
    roots = (spec and spec.submodule_search_locations) or ()
    return [Path(root) / inside for root in roots if (Path(root) / inside).exists()]


def cache_folder() -> Path:
    """The user's cache folder of this library: `lora_jax` in XDG_CACHE_HOME or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lora_jax"
