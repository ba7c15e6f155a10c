"""The names of a config's settings, and which of them a wrong name may mean."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs.settings import fields_of
from experiments.setup import variant_flags
from experiments.setup.config import kind_of
from lora_jax.suggest import close


def settings_of(section: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """The settings of a config by dotted name."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        nested = isinstance(value, Mapping | ConfigDict)
        found |= settings_of(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return found


def all_names(config: ConfigDict) -> list[str]:
    """The dotted names of all settings that flags can set, also of those that the config lacks."""
    fields = fields_of(kind_of(dict(config))).items()
    optional = [name for name, (field, _) in fields if field.metadata.get("optional")]
    return list(dict.fromkeys([*settings_of(variant_flags.with_all(config)), *optional]))


def meant(name: str, known: Sequence[str], prefix: str = "config.") -> list[str]:
    """The settings of which the last word of `name` is the name, the section or the initials.

    Args:
      known: all settings.
      prefix: what the result has before each.
    """
    word = name.rpartition(".")[2]
    return [prefix + path for path in known if word in (*path.split("."), _initials(path))]


def hint(name: str, known: Sequence[str], prefix: str = "config.") -> str:
    """The settings that a wrong name may mean, as the end of an error message."""
    found = meant(name, known, prefix)
    if len(found) == 1:
        return f"; it is {found[0]}"
    whole, word = name.replace(".", "/"), name.rpartition(".")[2]
    # Names in one section are always like one another: the last words have to be, too.
    like = [path for path in known if close(word, [path.rpartition(".")[2]])]
    like = close(whole, [path.replace(".", "/") for path in like])
    found = found[:3] or [prefix + path.replace("/", ".") for path in like]
    return f"; nearest: {', '.join(found)}" if found else "; --help lists all"


def wrong(name: str, known: Sequence[str]) -> str:
    """What is wrong with the name of a setting; empty if it is one, or a section."""
    if any(f"{path}.".startswith(f"{name}.") for path in known):
        return ""
    single = [path for path in known if name.startswith(f"{path}.")]
    why = f"; config.{single[0]} is a single one" if single else hint(name, known)
    return f"config.{name}: no such setting{why}"


def _initials(path: str) -> str:
    return "".join(word[:1] for word in path.rpartition(".")[2].split("_"))
