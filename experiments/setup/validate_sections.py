"""Check that a config has the sections and settings that a run needs."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import common

_PLAIN = ("experiment", "seed", "targets", "also_train", "start_from")


def check_sections(config: Mapping[str, Any]) -> None:
    """Raise a `ValueError` that names the first missing or incomplete section.

    The message also names the missing settings. A `variant` needs only a name, as variants have
    their own defaults (`variants/`). `configs.common` has the defaults of other sections.
    """
    texts = "generate" in config
    sections = _of_texts() if texts else _of_classifiers()
    for name in (*_PLAIN, "variant", *sections):
        if name not in config:
            like = "instruct" if texts else "quickstart"
            raise ValueError(
                f"the config has no {name}; configs/{like}.py has all that a run needs"
            )
        if name not in _PLAIN and not isinstance(config[name], Mapping):
            raise ValueError(f"config.{name} is no section of settings, but {config[name]!r}")
    if "name" not in config["variant"]:
        raise ValueError("config.variant has no name, such as lora")
    for name, (maker, defaults) in sections.items():
        if missing := [key for key in defaults if key not in config[name]]:
            raise ValueError(
                f"config.{name} has no {', '.join(missing)}; configs.common.{maker}(...) makes the "
                "section with defaults for what it is not told"
            )


Sections = dict[str, tuple[str, ConfigDict]]
"""By section: the function in `configs.common` that makes it, and the section it makes."""


def _of_classifiers() -> Sections:
    return {
        "model": ("model", common.model("")),
        "data": ("data", common.data("")),
        "train": ("train", common.train()),
        **_of_all(),
    }


def _of_texts() -> Sections:
    return {
        "model": ("decoder", common.decoder("")),
        "data": ("texts", common.texts("")),
        "train": ("train", common.train(label_smoothing=0.0)),
        "generate": ("generate", common.generate()),
        **_of_all(),
    }


def _of_all() -> Sections:
    return {
        "quantize": ("quantize", common.quantize()),
        "optimizer": ("optimizer", common.optimizer(0.0)),
    }
