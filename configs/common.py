"""The common part of all configs: sections with typed defaults, and parsing a config's argument."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from configs import settings


class UnknownArgumentError(ValueError):
    """A config does not take an argument of this name.

    Args:
      text: the message.
      key: the name of the argument.
      known: the names of the arguments that the config takes.
    """

    def __init__(self, text: str, key: str = "", known: tuple[str, ...] = ()):
        # The defaults are for ml_collections, which wraps an error in one of its class and a text.
        super().__init__(text)
        self.key, self.known = key, known


WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
    """Parse the part after the colon of `--config=FILE:key=value,...`, by the defaults' types.

    Raises:
      UnknownArgumentError: an unknown key; the message lists the known ones.
      ValueError: a value of another type, or a key that is given twice.
    """
    values, given = dict(defaults), set[str]()
    for item in filter(None, (arg or "").split(",")):
        key, equals, text = item.partition("=")
        if key not in defaults or not equals:
            said = (
                f"config argument '{item}': expected one of {', '.join(defaults)}=...; settings "
                "are flags, as in --config.seed=0"
            )
            raise UnknownArgumentError(said, key, tuple(defaults))
        if key in given:
            raise ValueError(f"config argument '{item}': {key} is given twice")
        given.add(key)
        kind = type(defaults[key])
        try:
            if kind in (int, float) and "_" in text:  # which Python would read over
                raise ValueError
            values[key] = kind(text)
        except ValueError as error:
            raise ValueError(
                f"config argument '{item}': {key} must be {WORDS[kind]}, got '{text}'"
            ) from error
    return values


def choose(arg: str | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Parse a config's argument; if a key's values are a tuple, the first one is the default.

    Raises:
      ValueError: an unknown key, or a value that is not in the tuple.
    """
    firsts = {k: v[0] if isinstance(v, tuple) else v for k, v in arguments.items()}
    choice = parse_arg(arg, **firsts)
    for key, values in arguments.items():
        if isinstance(values, tuple) and choice[key] not in values:
            listed = ", ".join(map(str, values))
            raise ValueError(f"{key} '{choice[key]}': expected one of {listed}")
    return choice


def variant(name: str, **given: Any) -> ConfigDict:
    """A variant by its name, and settings of it; others keep the variant's own defaults."""
    return ConfigDict({"name": name, **given})


def suggested(rate: str, targets: tuple[Any, ...], *, size: bool = True) -> ConfigDict:
    """What a run takes from its variant's file, `Variant.suggested`, where the config is open.

    A config is open about its learning rate if that is None, and about its targets if there are
    none. `experiments.setup.config.fill` fills both in; records and digests have the result.

    Args:
      rate: which of the variant's learning rates: `small`, `large` or `tried`.
      targets: those of a variant that suggests none.
      size: whether the variant's suggested settings are taken, too, unless given.
    """
    return ConfigDict({"rate": rate, "targets": targets, "size": size})


def section(kind: type, **given: Any) -> ConfigDict:
    """A section of a config with these settings, and the defaults of its class for the others.

    Args:
      kind: a class of `configs.settings`.

    Raises:
      TypeError: the class has no such setting.
    """
    made, types = kind(**given), typing.get_type_hints(kind)
    values = {}
    for field in dataclasses.fields(kind):
        value = getattr(made, field.name)
        if field.metadata.get("optional") and field.name not in given and value is not None:
            continue
        if value is None:  # the command line can set it
            hint = types[field.name]
            value = config_dict.placeholder((*typing.get_args(hint), hint)[0])
        values[field.name] = value
    return ConfigDict(values)


def quantize(storage: str = "none", patterns: tuple[str, ...] = ("all-linear",)) -> ConfigDict:
    """How frozen weights are stored."""
    return section(settings.QuantizeSettings, storage=storage, patterns=patterns)


def model(name: str, **given: Any) -> ConfigDict:
    """The base model of a classifier."""
    return section(settings.EncoderSettings, name=name, **given)


def decoder(name: str, **given: Any) -> ConfigDict:
    """A language model."""
    return section(settings.DecoderSettings, name=name, **given)


def own_model(name: str, **given: Any) -> ConfigDict:
    """A model of your own, by the dotted name of a function."""
    return section(settings.OwnModelSettings, name=name, **given)


def data(name: str, **given: Any) -> ConfigDict:
    """The data of a classifier."""
    return section(settings.DataSettings, name=name, **given)


def texts(name: str, **given: Any) -> ConfigDict:
    """Prompts with completions."""
    return section(settings.TextSettings, name=name, **given)


def arrays(name: str, **given: Any) -> ConfigDict:
    """Images, or other arrays, with labels."""
    return section(settings.ArraySettings, name=name, **given)


def train(**given: Any) -> ConfigDict:
    """How a run trains; a language model's also has `label_smoothing`."""
    kind = settings.TextTrainSettings if "label_smoothing" in given else settings.TrainSettings
    return section(kind, **given)


def optimizer(learning_rate: float | None, **given: Any) -> ConfigDict:
    """The optimiser's numbers; without a learning rate, the config says which is `suggested`."""
    return section(settings.OptimizerSettings, learning_rate=learning_rate, **given)


def generate(**given: Any) -> ConfigDict:
    """The texts that a language model generates."""
    return section(settings.GenerateSettings, **given)


def needs_nothing(choice: Mapping[str, Any]) -> bool:
    """Whether a run takes generated data, and a tiny model of random weights in place of its own.

    A smoke run does, unless a folder or a file with data is given.

    Raises:
      ValueError: generated data are asked for, but not a smoke run.
    """
    given, source = choice["folder"] or choice.get("file"), choice.get("source", "demo")
    if choice["size"] == "smoke":
        return not given and source in ("tfds", "demo")
    if "source" in choice and source == "demo":
        raise ValueError("source=demo: generated data are for trying a config; add size=smoke")
    return False


def tiny(model: str) -> dict[str, Any]:
    """The settings of the tiny model of a model's family: `tiny-roberta` for `roberta_large`.

    Its layers are scanned, as that compiles fastest.
    """
    return {"name": f"tiny-{model.partition('_')[0]}", "unroll": 1}
