"""Check the settings that only a language model's config has, before anything is loaded."""

import math
from typing import Any

from lora_jax import data
from lora_jax.metrics import text_metrics
from lora_jax.models.parts.decoder import POLICIES
from lora_jax.suggest import nearest

FROM_OPTIONS = "accuracy_written"
"""The metric of how often a text names the right answer, as LLM-Adapters and DoRA count it."""
LAYERS = "layers"
"""The value of `model.remat` that recomputes each layer; other values name policies."""

_CHOICES = {"data.template": ("plain", "chat"), "generate.part": ("validation", "extra")}
_LEAST = {
    "data.scored": 0,
    "model.chunk": 1,
    "generate.samples": 0,
    "generate.scored": -1,
    "generate.max_new_tokens": 1,
    "generate.beams": 1,
    "generate.no_repeat_ngram": 0,
    "generate.batch_size": 1,
}


def validate_texts(config: dict[str, Any]) -> None:
    """Raise a `ValueError` that names the first invalid setting."""
    for name, choices in _CHOICES.items():
        if (value := _setting(config, name)) not in choices:
            raise ValueError(f"config.{name} '{value}': expected {' or '.join(choices)}")
    for name, least in _LEAST.items():
        if (value := _setting(config, name)) < least:
            raise ValueError(f"config.{name} must be at least {least}, got {value}")
    section = config["generate"]
    if not math.isfinite(section["length_penalty"]):
        raise ValueError(
            f"config.generate.length_penalty must be finite, got {section['length_penalty']}"
        )
    if section["no_repeat_ngram"] and section["beams"] == 1:
        raise ValueError("config.generate.no_repeat_ngram acts in a search of 2 beams or more")
    if not 0 <= (share := _setting(config, "train.label_smoothing")) < 1:
        raise ValueError(f"config.train.label_smoothing must be in [0, 1), got {share}")
    text_metrics.check_names(section["metrics"], FROM_OPTIONS)
    remat = config["model"]["remat"]
    if remat not in (known := ("", LAYERS, *POLICIES)):
        raise ValueError(f"unknown model.remat '{remat}'; nearest: {nearest(remat, known[1:])}")


def check_written(section: dict[str, Any], task: data.TextTask) -> None:
    """Raise a ValueError if generated texts could not be scored as a config's `generate` says.

    The model generates only after training, so this is checked early.
    """
    if section["scored"] == 0:
        return
    parts = task.extra if section["part"] == "extra" else {"": task.validation}
    if not parts:
        raise ValueError(f"config.generate.part extra: task '{task.name}' has no further parts")
    for name in section["metrics"]:
        try:
            if name != FROM_OPTIONS:
                text_metrics.score_texts([name], ["text"], [["text"]])
                continue
            for part in parts.values():
                text_metrics.extracted_answers([""] * len(part), part)
        except (ValueError, ModuleNotFoundError) as error:
            raise ValueError(f"config.generate.metrics '{name}': {error}") from None


def remat_of(model: dict[str, Any]) -> bool | str:
    """The decoder's `remat` argument for a config's `model.remat`."""
    return True if model["remat"] == LAYERS else model["remat"] or False


def _setting(config: dict[str, Any], name: str) -> Any:
    section, _, key = name.partition(".")
    return config[section][key]
