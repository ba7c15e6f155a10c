"""Let flags set every field of the variant that a config names, and fractions of whole numbers."""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

import variants
from configs.settings import fields_of
from experiments.setup import json_config
from experiments.setup.config import is_a, kind_of
from lora_jax.suggest import nearest

_PLAIN = {int, float, bool, str, tuple}
_SETTING = re.compile(r"(?:no)?config\.variant\.(?!name$)(\w+)")
"""The name of a flag that sets a variant's setting; absl puts `no` before that of a bool."""
_WHOLE = re.compile(r"[+-]?\d+")


class ConfigFile(ConfigFileFlagParser):
    """Load a config file, and make room for what flags will set.

    The variant's section gets its settings, and a number that may be a fraction takes one.

    Args:
      texts: the text of each flag by its name, without dashes.
    """

    def __init__(self, texts: Mapping[str, str]):
        super().__init__("config")
        self._texts = texts

    def parse(self, path: str) -> Any:
        if json_config.is_json(path):
            config = json_config.read(path).lock()
        else:
            config = super().parse(path)
        _take_fractions(config, self._texts)
        _take_optional(config, self._texts)
        section, given = _section(config), _settings(self._texts)
        if section is None or not given:
            return config
        name = self._texts.get("config.variant.name", section.get("name"))
        known = _types(name)
        for setting in given:
            if known and setting not in known:
                near = nearest(setting, known)
                # absl puts lines of its own around a ValueError.
                raise flags.Error(f"variant '{name}' has no setting '{setting}'; nearest: {near}")
        _unset(section, {setting: known.get(setting, Any) for setting in given})
        return config


def _take_fractions(config: Any, texts: Mapping[str, str]) -> None:
    """Let the flags of fractions set settings that the config has as whole numbers."""
    if not isinstance(config, ConfigDict):
        return
    for name in fractions(config):
        place, _, key = name.rpartition(".")
        section, text = config.get(place), texts.get(f"config.{name}", "0")
        if not isinstance(section, ConfigDict) or _WHOLE.fullmatch(text.strip()):
            continue
        if type(section.get(key)) is int:
            _unset(section, {key: float})


def _take_optional(config: Any, texts: Mapping[str, str]) -> None:
    """Let flags set settings that a config may leave out, as their defaults change no digest."""
    if not isinstance(config, ConfigDict):
        return
    for name, (field, hint) in fields_of(kind_of(dict(config))).items():
        place, _, key = name.rpartition(".")
        section = config.get(place) if place else None
        if not (field.metadata.get("optional") and isinstance(section, ConfigDict)):
            continue
        if key not in section and {f"config.{name}", f"noconfig.{name}"} & texts.keys():
            _unset(section, {key: hint})


def fractions(config: ConfigDict) -> set[str]:
    """The settings of a config that may be fractions, such as `train.epochs`."""
    found = fields_of(kind_of(dict(config)))
    return {name for name, (_, hint) in found.items() if float in _alternatives(hint)}


def unset(config: ConfigDict) -> None:
    """Unset all settings of a config's variant; what it lacks is added, with its type."""
    if (section := _section(config)) is not None:
        _unset(section, _types(section.get("name")))


def with_all(config: ConfigDict) -> ConfigDict:
    """The config with all settings of its variant; those that it leaves open are unset."""
    if (section := _section(config)) is not None:
        given = set(section)
        _unset(section, {k: v for k, v in _types(section.get("name")).items() if k not in given})
    return config


def require_types(config: Any, texts: Mapping[str, str]) -> None:
    """Raise a ValueError if a flag has set a setting of the variant to a value of another type.

    Args:
      texts: the text of each flag by its name, without dashes.
    """
    section, given = _section(config), _settings(texts)
    if section is None or not given:
        return
    known = _types(section.get("name"))
    for setting, text in given.items():
        hint = known.get(setting, Any)
        if not _fits(section[setting], hint):
            said = hint.__name__ if isinstance(hint, type) else hint
            raise ValueError(f"flag --config.variant.{setting}={text}: expected {said}")


def _types(name: Any) -> dict[str, Any]:
    """The type of each setting of a variant; none if it cannot be found.

    `variants.make` then says why, and a sweep says it with all else that is wrong.
    """
    try:
        kind = variants.find(str(name))
    except (ValueError, ImportError):
        return {}
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _unset(section: ConfigDict, hints: Mapping[str, Any]) -> None:
    with section.unlocked():
        for setting, hint in hints.items():
            if setting in section:  # it would keep its type, such as that of 16 for a float
                del section[setting]
            section[setting] = config_dict.placeholder(_kind(hint))


def _section(config: Any) -> ConfigDict | None:
    section = config.get("variant") if isinstance(config, ConfigDict) else None
    return section if isinstance(section, ConfigDict) else None


def _settings(texts: Mapping[str, str]) -> dict[str, str]:
    """The text of each setting of the variant that flags set."""
    found = {_SETTING.fullmatch(name): text for name, text in texts.items()}
    return {match[1]: text for match, text in found.items() if match}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _kind(hint: Any) -> type:
    """The type by which a flag's text is read; `object`, as a Python literal, for mixed ones."""
    kinds = {typing.get_origin(each) or each for each in _alternatives(hint)} - {types.NoneType}
    return kinds.pop() if len(kinds) == 1 and kinds <= _PLAIN else object


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has one of a hint's plain types; any value has a type that is not plain."""
    return any(_is_one(value, each) for each in _alternatives(hint))


def _is_one(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        inner = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return len(inner) == len(value) and all(map(_fits, value, inner))
    return hint not in _PLAIN | {types.NoneType} or is_a(value, hint)
