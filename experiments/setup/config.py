"""Turn a config, which is plain data, into a `RunConfig`: from there on, settings are typed."""

import dataclasses
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import variants
from configs import settings
from experiments.setup.validate import validate
from lora_jax.messages import require_known


def parse(config: Mapping[str, Any]) -> settings.RunConfig:
    """The settings of a config, checked before anything is loaded.

    Raises:
      ValueError: one line that names the first setting that is missing or invalid.
    """
    _require_sections(config)
    variants.find(config["variant"]["name"])
    config = fill(config)
    parsed = _make(config, _complete)
    validate(parsed)
    return parsed


def fill(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config as plain data, with what its section `suggested` asks for in the section's place.

    What the config sets itself stays. A config without the section stays as it is, and so does one
    whose variant cannot be found: `variants.find` says why.

    Raises:
      ValueError: the section asks for a rate that no variant suggests, or lacks a setting.
    """
    asked = config.get("suggested")
    if asked is None:
        return config
    for name in ("rate", "targets", "size"):
        if not isinstance(asked, Mapping) or name not in asked:
            raise ValueError(
                f"config.suggested has no {name}; configs.common.suggested(...) makes the section"
            )
    variant, optimizer = config["variant"], config["optimizer"]
    try:
        own = variants.find(str(variant["name"])).suggested
    except (ValueError, ImportError):
        return config
    filled = {name: each for name, each in config.items() if name != "suggested"}
    if asked["size"]:
        given = {name: value for name, value in variant.items() if value is not None}
        filled["variant"] = {**own.settings, **given}
    # What these sections lack is said when they are parsed.
    if optimizer.get("learning_rate", 0) is None:
        rates = {"small": own.small, "large": own.large, "tried": own.tried[len(own.tried) // 2]}
        require_known(asked["rate"], rates, f"unknown config.suggested.rate '{asked['rate']}'")
        filled["optimizer"] = {**optimizer, "learning_rate": rates[asked["rate"]]}
    filled["targets"] = config["targets"] or own.targets or asked["targets"]
    study, storage = config.get("study"), config["quantize"].get("storage", "none")
    if study and study.get("row", "") is None:
        row = variant["name"] if storage == "none" else f"{variant['name']}_{storage}"
        filled["study"] = {**study, "row": row}
    return filled


def study_of(config: Mapping[str, Any]) -> settings.Study:
    """The place of a recorded run in a table; nothing else of the config is read."""
    study = config.get("study")
    return _known(settings.Study, study if isinstance(study, Mapping) else {})


def of_record(config: Mapping[str, Any]) -> settings.RunConfig:
    """The settings of a recorded run, perhaps of an earlier version: nothing is checked.

    Settings that the record lacks have their defaults.
    """
    return _make(config, _recorded)


def _make(config: Mapping[str, Any], section: Callable[..., Any]) -> settings.RunConfig:
    kind = kind_of(config)
    variant, study = config["variant"], config.get("study") or {}
    # A study may note more about its runs than tables read.
    known = {field.name for field in dataclasses.fields(settings.Study)}
    chosen = {k: _fixed(v) for k, v in variant.items() if k != "name" and v is not None}
    return kind(
        plain=config,
        experiment=config.get("experiment", ""),
        seed=config["seed"],
        variant=settings.VariantSettings(name=variant["name"], settings=chosen),
        targets=tuple(config.get("targets", ())),
        also_train=tuple(config.get("also_train", ())),
        start_from=config.get("start_from"),
        study=section(settings.Study, "study", {k: v for k, v in study.items() if k in known}),
        **{
            name: section(each, name, config.get(name, {}))
            for name, each in _sections(kind).items()
        },
    )


def kind_of(config: Mapping[str, Any]) -> type[settings.RunConfig]:
    """The class of a config's settings."""
    if "generate" in config:
        return settings.TextConfig
    section: Any = config.get("model")
    own = hasattr(section, "keys") and "weights" in section  # a ConfigDict is no Mapping
    return settings.OwnConfig if own else settings.ClassifierConfig


def _sections(kind: type[settings.RunConfig]) -> dict[str, type]:
    """The class of each section that a config must have, with settings of the class."""
    hints = typing.get_type_hints(kind)
    return {
        name: hint
        for name, hint in hints.items()
        if isinstance(hint, type)
        and dataclasses.is_dataclass(hint)
        and hint not in (settings.VariantSettings, settings.Study)
    }


MAKERS = {
    settings.EncoderSettings: "model",
    settings.DecoderSettings: "decoder",
    settings.OwnModelSettings: "own_model",
    settings.ArraySettings: "arrays",
    settings.DataSettings: "data",
    settings.TextSettings: "texts",
    settings.TrainSettings: "train",
    settings.TextTrainSettings: "train",
}
"""The functions of `configs.common` that make sections and have other names than these."""


def _require_sections(config: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the first section that is missing or no section."""
    plain = ("experiment", "seed", "targets", "also_train", "start_from")
    given = ("study",) if config.get("study") else ()
    for name in (*plain, "variant", *_sections(kind_of(config)), *given):
        if name not in config:
            like = "instruct" if "generate" in config else "quickstart"
            raise ValueError(
                f"the config has no {name}; configs/{like}.py has all that a run needs"
            )
        if name not in plain and not isinstance(config[name], Mapping):
            raise ValueError(f"config.{name} is not a section of settings, but {config[name]!r}")
    if "name" not in config["variant"]:
        raise ValueError("config.variant has no name, such as lora")
    _require_type("variant.name", config["variant"]["name"], str)
    hints = typing.get_type_hints(settings.RunConfig)
    for name in plain:
        _require_type(name, config[name], hints[name])


def _complete(kind: type, name: str, values: Mapping[str, Any]) -> Any:
    """A section with all its settings.

    Raises:
      ValueError: a setting is missing, unknown or of another type.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if missing := [
        key
        for key, field in fields.items()
        if key not in values and not field.metadata.get("optional")
    ]:
        raise ValueError(
            f"config.{name} has no {', '.join(missing)}; "
            f"configs.common.{MAKERS.get(kind, name)}(...) makes the section with defaults for "
            "what it is not told"
        )
    hints = typing.get_type_hints(kind)
    for key, value in values.items():
        require_known(key, fields, f"config.{name} has no setting '{key}'")
        _require_type(f"{name}.{key}", value, hints[key])
    return _known(kind, values)


def _recorded(kind: type, name: str, values: Mapping[str, Any]) -> Any:
    """A section of a recorded config; a setting that is lacking and has no default is None."""
    fields = dataclasses.fields(kind)
    none = {f.name: None for f in fields if f.default is f.default_factory is dataclasses.MISSING}
    return _known(kind, none | dict(values))


def _known(kind: type, values: Mapping[str, Any]) -> Any:
    """A section of the settings that its class knows, unchecked."""
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{key: _fixed(value) for key, value in values.items() if key in names})


def _fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_WORDS = {
    str: "a text",
    int: "an integer",
    float: "a number",
    bool: "True or False",
    tuple: "a list",
    Mapping: "a section",
}


def _require_type(name: str, value: Any, hint: Any) -> None:
    """Raise a ValueError unless a setting has the type of its field."""
    # What is in a list is checked where it is used, whose message says more.
    if not any(is_a(value, typing.get_origin(kind) or kind) for kind in types_beside(hint)):
        kind = typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint
        wanted = _WORDS.get(typing.get_origin(kind) or kind, _WORDS[Mapping])
        raise ValueError(f"config.{name} must be {wanted}, got {value!r}")


_CHECKED = (str, bool, Mapping, types.NoneType)
_OF_FLAGS = {int, float, bool, str, tuple}


def is_a(value: Any, hint: Any) -> bool:
    """Whether a value has the type of a setting. An integer is also a number; a bool is not.

    Of the types that settings of variants have, only numbers, texts, bools and tuples are checked.
    """
    if len(kinds := types_beside(hint)) > 1:
        return any(is_a(value, each) for each in kinds)
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (int, float):
        real = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, real) and not isinstance(value, bool)
    if kind is tuple:
        if not isinstance(value, list | tuple):
            return False
        inner = inner[:1] * len(value) if inner[1:] in ((), (...,)) else inner
        return not inner or (len(inner) == len(value) and all(map(is_a, value, inner)))
    return kind not in _CHECKED or isinstance(value, kind)


def types_beside(hint: Any) -> tuple[Any, ...]:
    """The types of an annotation such as `str | None`."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def flag_type(hint: Any) -> type:
    """The type by which a flag's text is read; `object`, as a Python literal, for mixed ones."""
    kinds = {typing.get_origin(each) or each for each in types_beside(hint)} - {types.NoneType}
    return kinds.pop() if len(kinds) == 1 and kinds <= _OF_FLAGS else object
