"""The text that `--help` prints: what a command does, its flags, and the settings of a config."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

WIDTH = 100
_INDENT = " " * 8
_OF_ABSL = r"^<[^>]*>: |;\s+repeat this option to specify a list of values.*$"
"""What absl adds to the help of flags with several values."""


def help_text(doc: str, own: Sequence[flags.Flag]) -> str:
    """The help of a command.

    Args:
      doc: the docstring of the command, with an example.
      own: its flags, in the order to show them.
    """
    parts = [doc.strip(), "", "Flags:"]
    for flag in own:
        parts += [f"    {usage(flag)}", *_wrapped(meaning(flag))]
    if any(map(takes_config, own)):
        parts += [
            "    --config.SECTION.SETTING=VALUE",
            *_wrapped(
                "Change a setting of the config, such as --config.optimizer.learning_rate=1e-4. "
                "With --help beside --config=FILE, all settings of that file are listed."
            ),
        ]
    return "\n".join([*parts, "", "--helpfull also lists the flags of the libraries."])


def own_flags(values: flags.FlagValues, main: str) -> list[flags.Flag]:
    """The flags of a command and of the modules of `experiments` that it uses, as they are defined.

    Args:
      main: the name of the command's module, which absl takes from the command line.
    """
    modules = values.flags_by_module_dict()
    shared = [name for name in sorted(modules) if name.startswith("experiments.") and name != main]
    return [flag for name in (main, *shared) for flag in modules.get(name, ())]


def usage(flag: flags.Flag) -> str:
    """How a flag is written: `--size=full|smoke`, `--[no]audit`."""
    if flag.boolean:
        return f"--[no]{flag.name}"
    value = "TEXT"
    match flag.parser:
        case ConfigFileFlagParser():
            value = "FILE[:ARGUMENT=VALUE,...]"
        case flags.EnumParser():
            value = "|".join(flag.parser.enum_values)
        case flags.IntegerParser():
            value = "INTEGER"
        case flags.FloatParser():
            value = "NUMBER"
        case flags.ListParser():
            value = "A,B,..."
    return f"--{flag.name}={value}"


def meaning(flag: flags.Flag) -> str:
    """What a flag does, its default, and whether it can be repeated."""
    said = re.sub(_OF_ABSL, "", " ".join(str(flag.help).split()))
    said += "" if said.endswith((".", "!")) else "."
    more = []
    if isinstance(flag, flags.MultiFlag):
        more.append("The flag may be given several times.")
    if is_required(flag):
        more.append("The flag is required.")
    elif "default" not in said:
        more.append(_default(flag))
    return " ".join([said, *more])


def _default(flag: flags.Flag) -> str:
    if flag.boolean:
        return f"The default is --{'' if flag.default else 'no'}{flag.name}."
    if flag.default in (None, "", [], ()):
        return "There is no default."
    lists = isinstance(flag.parser, flags.ListParser)
    return f"The default is {','.join(flag.default) if lists else flag.default}."


def is_required(flag: flags.Flag) -> bool:
    """Whether a command cannot run without a flag."""
    return any("must have a value other than None" in each.message for each in flag.validators)


def takes_config(flag: flags.Flag) -> bool:
    """Whether a flag's value is a config, of which further flags change settings."""
    return isinstance(flag.parser, ConfigFileFlagParser)


def settings_text(given: str, settings: Mapping[str, Any]) -> str:
    """The settings of a config, each as the flag that sets it.

    Args:
      given: what `--config` was given.
      settings: the values by dotted name.
    """
    lines = [f"    --config.{name}={value}" for name, value in settings.items()]
    return "\n".join([f"Settings of {given}:", *lines])


def _wrapped(said: str) -> list[str]:
    return textwrap.wrap(
        said, WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False
    )
