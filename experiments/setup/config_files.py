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


def located(name: str) -> str:
    """The path of a config file: `configs/glue.py` also names this project's in other folders."""
    own = ROOT / name
    is_own = own.is_relative_to(ROOT / "configs") and own.is_file() and not Path(name).is_file()
    return str(own) if is_own else name


def config_paths() -> list[str]:
    """The config files to run, of this folder and of this project, as `--config` takes them."""
    found = {}
    for root in (ROOT, Path()):
        for path in (root / "configs").glob("*.py"):
            if b"def get_config" in path.read_bytes():
                found[str(path.relative_to(root))] = None
    return sorted(found)


def studies() -> dict[str, str]:
    """The modules of the config files that have a STUDY, by name."""
    modules = config_modules()
    return {name: each for name, each in modules.items() if _has_study(each)}


def _has_study(module: str) -> bool:
    return hasattr(importlib.import_module(module), "STUDY")
