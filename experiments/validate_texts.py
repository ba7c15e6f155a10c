"""What a language model's config must be beside what every config must, checked before loading."""

from collections.abc import Mapping
from typing import Any

from lora_jax import data, text_metrics
from lora_jax.models.decoder import check_remat

FROM_OPTIONS = "accuracy_written"
"""How often the answer that a text names is the right one, as LLM-Adapters and DoRA count it."""
LAYERS = "layers"
"""What `model.remat` calls recomputing each layer; the names of policies are others."""

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
    """Raise a `ValueError` that names the first setting that cannot be."""
    for name, choices in _CHOICES.items():
        if (value := _setting(config, name)) not in choices:
            raise ValueError(f"config.{name} '{value}': expected {' or '.join(choices)}")
    for name, least in _LEAST.items():
        if (value := _setting(config, name)) < least:
            raise ValueError(f"config.{name} must be at least {least}, got {value}")
    if not 0 <= (share := _setting(config, "train.label_smoothing")) < 1:
        raise ValueError(f"config.train.label_smoothing must be in [0, 1), got {share}")
    text_metrics.check_names(config["generate"]["metrics"], FROM_OPTIONS)
    remat = config["model"]["remat"]
    if remat not in ("", LAYERS):
        check_remat(remat)


def check_written(section: Mapping[str, Any] | None, task: data.TextTask) -> None:
    """Raise now what could only be raised after training: texts that cannot be scored.

    Args:
      section: a config's `generate`, or None.

    Raises:
      ValueError, ModuleNotFoundError: one line on the part or the metric.
    """
    if not section or section["scored"] == 0:
        return
    parts = {"validation": task.validation} if section["part"] == "validation" else task.extra
    if not parts:
        raise ValueError(
            f"config.generate.part extra: task '{task.name}' has no further parts, only validation"
        )
    plain = [name for name in section["metrics"] if name != FROM_OPTIONS]
    text_metrics.score_texts(plain, ["a"], [["a"]])
    without = [name for name, part in parts.items() if part.options is None]
    if without and FROM_OPTIONS in section["metrics"]:
        raise ValueError(f"config.generate.metrics {FROM_OPTIONS}: {without[0]} has no options")


def remat_of(model: dict[str, Any]) -> bool | str:
    """What a decoder is told of `model.remat`."""
    return True if model["remat"] == LAYERS else model["remat"] or False


def _setting(config: dict[str, Any], name: str) -> Any:
    section, _, key = name.partition(".")
    return config[section][key]
