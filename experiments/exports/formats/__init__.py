"""The formats, one file each; the name of a file is what `--as` takes, and nothing else lists them.

In `--as`, an underscore of the name is a hyphen.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from experiments.exports.format import Format
from lora_jax.suggest import nearest


def names() -> list[str]:
    """What `--as` takes."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def make(name: str, options: Mapping[str, Any]) -> Format:
    """The format of a name, with these options.

    Raises:
      ValueError: one line on an unknown name, an option of another format, or an invalid value.
    """
    if name not in names():
        near, known = nearest(name, names(), 1), ", ".join(names())
        raise ValueError(f"--as={name}: unknown format; nearest: {near}; the formats: {known}")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    (kind,) = (
        each
        for each in vars(module).values()
        if isinstance(each, type)
        and issubclass(each, Format)
        and each.__module__ == module.__name__
    )
    fields = {each.metadata.get("flag", each.name): each.name for each in dataclasses.fields(kind)}
    for option in options:
        if option not in fields:
            own = ", ".join(f"--{each}" for each in fields) or "none"
            raise ValueError(f"--{option} is not a flag of --as={name}, whose flags are: {own}")
    return kind(**{fields[option]: value for option, value in options.items()})
