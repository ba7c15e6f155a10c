"""Fill in what a config leaves to its variant: learning rate, size, targets, row of a table."""

from collections.abc import Mapping
from typing import Any

import variants
from lora_jax.suggest import require_known


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
