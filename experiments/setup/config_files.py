"""The config files of this project: their names, and which of them are studies."""

import importlib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def config_modules() -> dict[str, str]:
    """The modules of all config files, by the file's name, those of studies included."""
    own = {path.stem: f"configs.{path.stem}" for path in (ROOT / "configs").glob("*.py")}
    of_studies = (ROOT / "configs" / "studies").glob("*.py")
    own |= {path.stem: f"configs.studies.{path.stem}" for path in of_studies}
    return {name: own[name] for name in sorted(own) if name != "__init__"}


def studies() -> dict[str, str]:
    """The modules of the config files that have a STUDY, by name."""
    modules = config_modules()
    return {name: each for name, each in modules.items() if _has_study(each)}


def _has_study(module: str) -> bool:
    return hasattr(importlib.import_module(module), "STUDY")
