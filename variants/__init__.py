"""The methods, one file each; a file's name is the method's name, and nothing else lists them."""

import dataclasses
import importlib
import pkgutil
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_jax.messages import nearest, require_known
from lora_jax.peft_format import quoted
from lora_jax.variant import Variant


def names() -> list[str]:
    """The names of all variants: the files of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def make(name: str, **settings: Any) -> Variant:
    """The variant in `variants/<name>.py`, or in the module that a dotted name imports.

    Args:
      name: for example `"lora"`; a dotted name (`"my_project.my_variant"`) imports your own file.
      settings: the fields of the variant, for example `rank=8, alpha=16`.

    Raises:
      ValueError: an unknown name or setting (the nearest ones are listed), a module that is not
        found, or an invalid value.
    """
    kind = find(name)
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    for setting, value in settings.items():
        if not fields:
            raise ValueError(f"variant '{name}' has no settings, so none named '{setting}'")
        require_known(setting, fields, f"variant '{name}' has no setting '{setting}'")
        kinds = {fields[setting], *typing.get_args(fields[setting])}
        if kinds & {int, float} and isinstance(value, bool | str) and type(value) not in kinds:
            raise ValueError(f"variant '{name}': {setting} must be a number, got {value!r}")
        if fields[setting] is bool and not isinstance(value, bool | np.bool_):
            raise ValueError(f"variant '{name}': {setting} must be true or false, got {value!r}")
        if fields[setting] is str and not isinstance(value, str):
            raise ValueError(f"variant '{name}': {setting} must be a text, got {value!r}")
    # A sweep may hand over NumPy's numbers; settings are plain, so that they can be saved.
    plain = {n: v.item() if isinstance(v, np.generic) else v for n, v in settings.items()}
    return kind(**plain)


def from_peft(config: Mapping[str, Any]) -> Variant:
    """The variant that PEFT's settings mean for one module (`Variant.from_peft`).

    Raises:
      ValueError: no variant is PEFT's method, or it has settings that are not known here.
    """
    for name in names():
        if (variant := _imported(name).from_peft(config)) is not None:
            return variant
    raise ValueError(f"no variant is PEFT's {quoted(config.get('peft_type'))}")


def find(name: str) -> type[Variant]:
    """The class of a variant by the name of its file (see `make`)."""
    own = "." in name and all(part.isidentifier() for part in name.split("."))
    if not own and name not in names():
        raise ValueError(f"unknown variant '{name}'; nearest: {nearest(name, names())}")
    return _imported(name)


def _imported(name: str) -> type[Variant]:
    module_name = name if "." in name else f"{__name__}.{name}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not f"{module_name}.".startswith(f"{missing}."):
            raise  # the file exists, and something that it imports does not
        package, _, last = missing.rpartition(".")
        said = f"'{package}' has no module" if package else "PYTHONPATH has no module"
        raise ValueError(f"unknown variant '{name}': {said} '{last}'") from None
    kinds = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Variant)
        and value.__module__ == module.__name__
    ]
    if len(kinds) != 1:
        raise ValueError(f"'{module_name}' must define one variant, and defines {len(kinds)}")
    return kinds[0]
