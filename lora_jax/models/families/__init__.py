"""The families of models, one file each: nothing else lists them.

A file is called as the `model_type` of a config.json, with `_` for `-`, and has a `FAMILY`. Only
the file of a wanted family is imported.
"""

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, Literal

from lora_jax.messages import nearest
from lora_jax.models.parts.config_checks import ModelConfig, shown
from lora_jax.models.parts.family import Family, Place

Kind = Literal["encoder", "decoder"]


def all_families(kind: Kind | None = None) -> dict[str, Family]:
    """All families, or those of a kind, by `model_type`; this imports them all."""
    files = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [importlib.import_module(f"{__name__}.{file}").FAMILY for file in files]
    return {each.model_type: each for each in found if kind in (None, each.kind)}


def find(model_type: Any, kind: Kind | None = None) -> Family:
    """The family of a `model_type`; ValueError if there is none, or none of this kind."""
    family = _found(model_type) if isinstance(model_type, str) else None
    if family is not None and kind in (None, family.kind):
        return family
    known = all_families(kind)
    raise ValueError(
        f"model_type {shown(model_type)} is not supported; nearest: "
        f"{nearest(str(model_type), known)}; supported: {', '.join(known)}"
    )


def family_of(config: Mapping[str, Any] | ModelConfig, kind: Kind | None = None) -> Family:
    """The family of a model's config, or of a config.json's content; errors as for `find`."""
    made = isinstance(config, ModelConfig)
    return find(config.model_type if made else config.get("model_type"), kind)


def is_decoder(model_type: Any) -> bool:
    """Whether a `model_type` is that of a supported decoder."""
    family = _found(model_type) if isinstance(model_type, str) else None
    return family is not None and family.kind == "decoder"


def read(content: Mapping[str, Any], kind: Kind | None = None) -> Any:
    """The checked config of a config.json's content; ValueError if it is not supported."""
    return family_of(content, kind).config.from_json(content)


def places(path: str, config: Any) -> list[Place]:
    """The places of a parameter in a published checkpoint, one for each layer if it is stacked."""
    return family_of(config).places(path, config.num_hidden_layers)


@functools.cache
def _found(model_type: str) -> Family | None:
    file = model_type.replace("-", "_")
    if file not in (module.name for module in pkgutil.iter_modules(__path__)):
        return None
    family = importlib.import_module(f"{__name__}.{file}").FAMILY
    return family if family.model_type == model_type else None
