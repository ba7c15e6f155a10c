"""Read a config from a command line: the file, its arguments, and settings from flags.

Flags can set every setting of a config, also those that its file leaves out: the fields of the
variant that it names, settings with a default, and fractions in place of whole numbers.
"""

import dataclasses
import itertools
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags
from ml_collections.config_flags import config_path
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

import variants
from configs.settings import fields_of
from experiments.command_names import flag_file
from experiments.setup import config_files
from experiments.setup.config import flag_type, is_a, kind_of, types_beside
from lora_jax.files import number_text
from lora_jax.messages import close, first_line, nearest, nearest_if_close


def read_config(arguments: Sequence[str]) -> ConfigDict:
    """The config that `experiments.train` would train with these flags.

    Raises:
      ValueError: one line on what is wrong with a flag or the config file.
    """
    values = flags.FlagValues()
    argv = _with_flag_files(["sweep", *arguments], values)
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    read(argv, values)
    return values["config"].value  # type: ignore[return-value]


_CAUSE = r"\s*(?:ValueError|TypeError): (.*\S)"
"""How absl quotes the error of a value's parser."""
_OF_PYTHON = {
    r"invalid literal for int\(\) with base 10: .*": "expected a whole number, such as 8",
    r"\('Non-boolean argument to boolean flag', .*": "expected true or false",
    r"could not convert string to float: .*": "expected a number, such as 3e-4",
    r"Failed to parse .* as a ConfigDict: .*": "it is a section, not a setting",
    r"The flag 'config\..*' is defined twice.*": "two --config flags are given: leave one out",
    r"value should be one of <(.*)>": r"expected \1",
    r": \S+ is not (?=an? )": ": expected ",
    r": \S+ is not integer >= ": ": expected a whole number of at least ",
}
"""Errors of Python and absl in a flag's text, and what they mean."""
_MISSING = r"flag --(\w+)=None: Flag --\1 must have a value other than None"


def read(argv: Sequence[str], values: flags.FlagValues) -> list[str]:
    """Read flags into `values`.

    Raises:
      ValueError: one line on what is wrong with a flag or the config file.
    """
    argv = list(_located(_with_flag_files(argv, values)))
    # The flag of `benchmarks` is a text, of which the command makes several configs.
    is_text = "config" in values and not isinstance(values["config"].parser, ConfigFileFlagParser)
    given = [text.partition(":") for name, text in flag_texts(argv) if name == "config"]
    files = [name for name, _, _ in given]
    for name, _, arguments in given:
        _check_config_file(name, arguments)
    try:
        with config_files.in_one_line(files):
            rest = _parsed(argv, values)
            if files and not is_text:
                check_config(files[-1], values["config"].value)
    except ValueError as error:
        if flag := _meant_by_argument(error, given[-1:]):
            raise ValueError(str(error).replace("--config.seed=0", flag)) from error
        raise
    _check_numbers(argv, values)
    if "config" in values and not is_text:
        _require_types(values["config"].value, dict(flag_texts(argv)))
    return rest


def _meant_by_argument(error: ValueError, given: Sequence[tuple[str, str, str]]) -> str:
    """The flag of the setting that an unknown argument of a config means; empty if none is clear.

    Args:
      given: the config's file, a colon, and its arguments.
    """
    unknown = config_files.unknown_argument(error)
    for file, _, arguments in given if unknown else ():
        items = [each.partition("=") for each in arguments.split(",")]
        texts = {key: text for key, _, text in items}
        if unknown and unknown.key in texts:  # else the file's own code gives it
            known = ",".join("".join(each) for each in items if each[0] in unknown.known)
            settings = meant(unknown.key, all_names(read_config([f"--config={file}:{known}"])))
            return f"--{settings[0]}={texts[unknown.key]}" if len(settings) == 1 else ""
    return ""


def _with_flag_files(argv: Sequence[str], values: flags.FlagValues) -> list[str]:
    """The command line, with the flags of each --flagfile in its place."""
    program, *given = argv
    try:
        return [program, *values.read_flags_from_files(given, force_gnu=False)]
    except flags.CantOpenFlagFileError as error:
        raise ValueError(flag_file(error)) from error
    except flags.Error as error:
        raise ValueError(first_line(error)) from error


def _located(argv: Sequence[str]) -> Iterator[str]:
    """The arguments, with the path of each config file in place of its name."""
    for before, argument in itertools.pairwise(["", *argv]):
        found = re.fullmatch(r"(--?config=|)([^:]+)(.*)", argument, re.DOTALL)
        if found and (found[1] or before in ("--config", "-config")):
            argument = f"{found[1]}{config_files.located(found[2])}{found[3]}"
        yield argument


def _parsed(argv: Sequence[str], values: flags.FlagValues) -> list[str]:
    try:
        if "config" in values and isinstance(values["config"].parser, ConfigFileFlagParser):
            values["config"].parser = _ConfigFile(dict(flag_texts(argv)))
        return values(argv)
    except (AttributeError, LookupError, TypeError) as error:  # not in the locked config
        raise ValueError(_wrong_setting(argv) or first_line(error)) from error
    except flags.UnrecognizedFlagError as error:
        raise ValueError(_no_flag(error.flagname, argv, values)) from error
    except flags.Error as error:
        lines = str(error).strip().splitlines()
        causes = [found[1] for line in lines if (found := re.match(_CAUSE, line))]
        said = causes[-1] if causes else lines[0]
        for python, plain in _OF_PYTHON.items():
            said = re.sub(python, plain, said)
        if missing := re.match(_MISSING, said):
            meaning = str(values[missing[1]].help).rstrip(".")
            raise ValueError(
                f"--{missing[1]} is missing: {meaning[0].lower()}{meaning[1:]}"
            ) from error
        for name, text in flag_texts(argv):  # absl's error names the flag in its text only
            if str(error).startswith(f"flag --{name}={text}: "):
                section, dot, path = name.partition(".")
                kind = config_path.get_type(path, values[section].value) if dot else None
                if kind is ConfigDict:
                    first = first_setting(config_path.get_value(path, values[section].value))
                    said += f"; nearest: --{name}.{first}"
                if isinstance(parser := values[name].parser, flags.EnumParser):
                    said += nearest_if_close(text, parser.enum_values, cutoff=0.3)
                raise ValueError(said) from error
        raise ValueError(said) from error


def _no_flag(flag: str, argv: Sequence[str], values: flags.FlagValues) -> str:
    """A message that there is no such flag, and which flag or setting of the config is meant."""
    try:
        known = _setting_names(argv)
    except ValueError:
        known = []
    like = [f"--{name}" for name in close(flag, values)]
    if not like or meant(flag, known):
        return f"no flag --{flag}{_hint(flag, known, '--config.')}"
    return f"no flag --{flag}; nearest: {', '.join(like)}"


def _setting_names(argv: Sequence[str]) -> list[str]:
    """The names of all settings of a command line's config; none without a config."""
    configs = [f"--config={text}" for name, text in flag_texts(argv) if name == "config"]
    return all_names(read_config(configs)) if configs else []


def _wrong_setting(argv: Sequence[str]) -> str:
    """What is wrong with the first flag whose setting the config does not have."""
    given = [re.fullmatch(r"(?:no)?config\.(.+)", name) for name, _ in flag_texts(argv)]
    paths = [found[1] for found in given if found]
    known = _setting_names(argv) if paths else []
    said = (_wrong(path, known) for path in paths)
    return next(filter(None, said), "")


def first_setting(section: ConfigDict) -> str:
    """The setting of a section that a flag of the whole section most likely means."""
    return "name" if "name" in section else next(iter(section))


def flag_texts(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The name and text of each flag, written as `--name=text` or `--name text`."""
    for argument, following in itertools.pairwise([*argv, ""]):
        if found := re.fullmatch(r"--?([\w.]+)(?:=(.*))?", argument, re.DOTALL):
            yield found[1], following if found[2] is None else found[2]


def _check_numbers(argv: Sequence[str], values: flags.FlagValues) -> None:
    """Raise a ValueError if a flag was read as a number, but is not plainly written as one."""
    for name, text in flag_texts(argv):
        if name not in values:
            continue
        match values[name].value:
            case bool() | str() | None:
                numbers = []
            case int() | float():
                numbers = [text.strip()]
            case _:  # tuples and sections of a config are Python literals
                numbers = number_text.inside(text) if name.startswith("config.") else []
        for number in numbers:
            if number_text.read(number) is None:
                said = (
                    f"flag --{name}={text}: '{number}' is not a plainly written, finite number, "
                    "such as 10 or 3e-4"
                )
                raise ValueError(said)


def _check_config_file(name: str, arguments: str) -> None:
    """Raise a ValueError if a file is not a config, without executing it.

    Args:
      arguments: what follows the file's name and a colon.
    """
    file, _, rest = name.partition(",")
    if rest and Path(file).is_file():
        raise ValueError(f"--config={name}: arguments follow a colon: {file}:{rest}")
    if not config_files.exists(name):
        raise ValueError(
            f"no config file '{name}'; nearest: {nearest(name, config_files.config_paths())}"
        )
    if config_files.is_json(name):
        config_files.read_json(name)
        if arguments:
            raise ValueError(
                f"--config={name}: a .json takes no arguments after a colon; its settings are "
                "flags, such as --config.variant.name=dora"
            )
        return
    if "get_config" not in config_files.compiled(name):
        near = nearest(name, config_files.config_paths())
        raise ValueError(f"'{name}' is not a config: it has no get_config; nearest: {near}")


def check_config(name: str, config: Any) -> None:
    """Raise a ValueError if `get_config` of a file has not returned a config."""
    if isinstance(config, ConfigDict):
        return
    try:
        getattr(config, "lock", None)  # a failed load raises OSError on first use
    except OSError as error:
        last = str(error).strip().rpartition("\n")[2].strip() or first_line(error)
        raise ValueError(f"'{name}' gives no config: {last}") from error
    kind = type(config).__name__
    raise ValueError(f"'{name}': get_config() returns a {kind}, expected a ConfigDict")


_SETTING = re.compile(r"(?:no)?config\.variant\.(?!name$)(\w+)")
"""The name of a flag that sets a variant's setting; absl puts `no` before that of a bool."""
_WHOLE = re.compile(r"[+-]?\d+")


class _ConfigFile(ConfigFileFlagParser):
    """Load a config file, and make room for what flags will set.

    The variant's section gets its settings, and a number that may be a fraction takes one.

    Args:
      texts: the text of each flag by its name, without dashes.
    """

    def __init__(self, texts: Mapping[str, str]):
        super().__init__("config")
        self._texts = texts

    def parse(self, path: str) -> Any:
        if config_files.is_json(path):
            config = config_files.read_json(path).lock()
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
    return {name for name, (_, hint) in found.items() if float in types_beside(hint)}


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


def _require_types(config: Any, texts: Mapping[str, str]) -> None:
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
        if not is_a(section[setting], hint):
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
            section[setting] = config_dict.placeholder(flag_type(hint))


def _section(config: Any) -> ConfigDict | None:
    section = config.get("variant") if isinstance(config, ConfigDict) else None
    return section if isinstance(section, ConfigDict) else None


def _settings(texts: Mapping[str, str]) -> dict[str, str]:
    """The text of each setting of the variant that flags set."""
    found = {_SETTING.fullmatch(name): text for name, text in texts.items()}
    return {match[1]: text for match, text in found.items() if match}


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
    return list(dict.fromkeys([*settings_of(with_all(config)), *optional]))


def meant(name: str, known: Sequence[str], prefix: str = "config.") -> list[str]:
    """The settings of which the last word of `name` is the name, the section or the initials.

    Args:
      known: all settings.
      prefix: what the result has before each.
    """
    word = name.rpartition(".")[2]
    return [prefix + path for path in known if word in (*path.split("."), _initials(path))]


def _hint(name: str, known: Sequence[str], prefix: str = "config.") -> str:
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


def _wrong(name: str, known: Sequence[str]) -> str:
    """What is wrong with the name of a setting; empty if it is one, or a section."""
    if any(f"{path}.".startswith(f"{name}.") for path in known):
        return ""
    single = [path for path in known if name.startswith(f"{path}.")]
    why = f"; config.{single[0]} is a single one" if single else _hint(name, known)
    return f"config.{name}: no such setting{why}"


def _initials(path: str) -> str:
    return "".join(word[:1] for word in path.rpartition(".")[2].split("_"))
