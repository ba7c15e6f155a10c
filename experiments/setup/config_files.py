"""Config files: found by name, read from Python or from a run's JSON, with errors of one line."""

import contextlib
import importlib
import importlib.util
import linecache
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict, config_dict

from configs import common
from configs.common import UnknownArgumentError
from configs.settings import fields_of
from experiments.setup.config import flag_type, kind_of
from lora_jax.files import json_text
from lora_jax.messages import first_line, nearest, nearest_path
from lora_jax.records import packed

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
        compiled(str(path))
        module = importlib.util.module_from_spec(spec)
        with in_one_line([str(path)]):
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


def is_json(name: str) -> bool:
    """Whether `--config` names such a file, and not one of Python."""
    return name.endswith(".json")


def read_json(path: str) -> ConfigDict:
    """The config in a run's `config.json`, packed or not, or in the `run.json` of an export.

    Settings that are null there keep the types that flags can give them.

    Raises:
      ValueError: the file is not JSON, or is not the config of a run.
    """
    content = _packed(Path(path)) or json_text.read_object(Path(path))
    if not {"experiment", "seed", "model", "data", "variant"} <= content.keys():
        raise ValueError(f"'{path}' is not the config of a run, such as config.json in its folder")
    hints = {name: hint for name, (_, hint) in fields_of(kind_of(content)).items()}
    return ConfigDict(_typed(content, hints))


def exists(path: str) -> bool:
    """Whether there is a file, or a packed run whose `config.json` it would be."""
    return Path(path).is_file() or _packed(Path(path)) is not None


def _packed(path: Path) -> dict[str, Any] | None:
    if path.name != "config.json" or path.exists() or not (there := packed.holder(path.parent)):
        return None
    pack, run = there
    return pack.values(run)["config"]


def _typed(values: Mapping[str, Any], hints: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found[name] = _typed(value, hints, f"{where}{name}.")
        elif value is None and (own := flag_type(hints.get(where + name))) is not object:
            found[name] = config_dict.placeholder(own)
        else:
            found[name] = _tuples(value)
    return found


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@contextlib.contextmanager
def in_one_line(files: Sequence[str]) -> Iterator[None]:
    """Turn an error from the code of these config files into a ValueError of one line.

    Other errors pass unchanged. If a config, a file in its folder or one of this project's configs
    raises a ValueError with its own `raise` statement, the message is kept without file and line.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if said := _said(error, files):
            raise ValueError(said) from error
        raise


def compiled(name: str) -> tuple[str, ...]:
    """Compile a config file and return the names that its code uses.

    Raises:
      ValueError: the file is not Python; the message has the line.
    """
    try:
        return compile(Path(name).read_bytes(), name, "exec").co_names
    except SyntaxError as error:
        raise ValueError(f"'{name}' is not a config, not even Python: {error}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes, deep nesting
        said = first_line(error)
        raise ValueError(f"'{name}' is not a config, not even Python: {said}") from error


def _said(error: BaseException, files: Sequence[str]) -> str:
    """The line to report if the error, or one of its causes, was raised in one of these files."""
    for cause in causes(error):
        frames = traceback.extract_tb(cause.__traceback__)
        inside = [frame for frame in frames if _named(frame.filename, files)]
        if not inside:
            continue
        if isinstance(cause, ValueError) and _deliberate(frames[-1], inside[-1].filename):
            return " ".join(str(cause).split())
        return (
            f"{_named(inside[-1].filename, files)}, line {inside[-1].lineno}: {first_line(cause)}"
        )
    return ""


def causes(error: BaseException) -> list[BaseException]:
    """An error and its chain of causes and contexts, as libraries wrap what a config raises."""
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) and cause not in found:
        found.append(cause)
    return found


def unknown_argument(error: BaseException) -> UnknownArgumentError | None:
    """The error of an unknown argument in an error's chain of causes."""
    found = [each for each in causes(error) if isinstance(each, UnknownArgumentError)]
    return found[-1] if found else None  # the last is the config's own


def _deliberate(frame: traceback.FrameSummary, file: str) -> bool:
    folders = [Path(each).resolve().parent for each in (file, common.__file__)]
    line = linecache.getline(frame.filename, frame.lineno or 0)
    return Path(frame.filename).resolve().parent in folders and line.strip().startswith("raise ")


def _named(path: str, files: Sequence[str]) -> str:
    """The path of one of the files as the user gave it; empty for another file."""
    same = (file for file in files if os.path.abspath(path) == os.path.abspath(file))
    return next(same, "")
