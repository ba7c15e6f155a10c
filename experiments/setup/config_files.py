"""Config files by name: those of this project, and files or modules of one's own."""

import importlib
import importlib.util
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from experiments.setup import config_errors
from lora_jax.suggest import nearest, nearest_path

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


def module_of(name: str, needs: Sequence[str], flag: str) -> tuple[str, ModuleType]:
    """The name of a config file without ending, by which records call it, and its module.

    Args:
      name: that of a file of this project, or the path of any file, which ends in `.py`, or a
        module on PYTHONPATH with a dot in its name.
      needs: what the file must define, such as STUDY; of names, those of files that do are known.
      flag: the flag that gives the name, for errors.

    Raises:
      ValueError: one line on a file that is not there, is named like one of this project's, has an
        error, or does not define what it needs.
    """
    given, own = f"--{flag}={name}", config_modules()
    if "." not in name:
        known = [each for each in own if _defines(importlib.import_module(own[each]), needs)]
        if name not in known:
            hint = f"nearest: {nearest(name, known)}"
            if Path(f"{name}.py").is_file():
                hint = f"a file of your own is given by its path: --{flag}={name}.py"
            raise ValueError(f"{given}: unknown {flag}; {hint}")
        return name, importlib.import_module(own[name])
    spec = _of_path(Path(located(name)), given) if name.endswith(".py") else _of_name(name, given)
    path = Path(str(spec.origin))
    if path.stem in own:
        module = importlib.import_module(own[path.stem])
        if Path(str(module.__file__)).resolve() != path.resolve():
            raise ValueError(
                f"{given}: this project has a config file '{path.stem}', too: rename yours, as "
                "reports find runs by the name of their file"
            )
    else:
        config_errors.compiled(str(path))
        module = importlib.util.module_from_spec(spec)
        with config_errors.in_one_line([str(path)]):
            assert spec.loader is not None
            spec.loader.exec_module(module)
    if not _defines(module, needs):
        lacking = [each for each in needs if not hasattr(module, each)]
        raise ValueError(f"{given}: it has no {' and no '.join(lacking)}")
    return path.stem, module


def _defines(module: ModuleType, names: Sequence[str]) -> bool:
    return all(hasattr(module, each) for each in names)


def _of_path(path: Path, given: str) -> ModuleSpec:
    if not path.is_file():
        near = nearest_path(path, lambda each: each.suffix == ".py")
        raise ValueError(f"{given}: there is no such file{near}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    return spec


def _of_name(name: str, given: str) -> ModuleSpec:
    try:
        spec = importlib.util.find_spec(name)
    except ImportError as error:  # of a package that is not there, or of what it imports
        if error.name and not f"{name}.".startswith(f"{error.name}."):
            raise
        spec = None
    if spec is None or not spec.has_location:
        raise ValueError(f"{given}: PYTHONPATH has no such module; a file's path ends in .py")
    return spec
