"""Read a config from the JSON that a run leaves of it, so that the run can be made again."""

import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from configs.settings import fields_of
from experiments.setup.config import kind_of
from lora_jax.files import json_text
from lora_jax.records import packed


def is_json(name: str) -> bool:
    """Whether `--config` names such a file, and not one of Python."""
    return name.endswith(".json")


def read(path: str) -> ConfigDict:
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
        elif value is None and (own := _plain(hints.get(where + name))) is not None:
            found[name] = config_dict.placeholder(own)
        else:
            found[name] = _tuples(value)
    return found


def _plain(hint: Any) -> type | None:
    """The type beside None in an annotation such as `str | None`; None for any other."""
    if not isinstance(hint, types.UnionType):
        return None
    others = [each for each in typing.get_args(hint) if each is not types.NoneType]
    return others[0] if len(others) == 1 and isinstance(others[0], type) else None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
