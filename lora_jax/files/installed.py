"""Files of installed packages that are never imported: models and data sets that come in wheels."""

import importlib.util
from pathlib import Path


def installed(package: str, inside: str) -> list[Path]:
    """The places of a file or folder in an installed package; empty if it is in none."""
    spec = importlib.util.find_spec(package)  # finds, does not import
    roots = (spec and spec.submodule_search_locations) or ()
    return [Path(root) / inside for root in roots if (Path(root) / inside).exists()]
