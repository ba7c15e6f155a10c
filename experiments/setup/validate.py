"""Check the numbers and patterns of a config before anything is loaded."""

import math
from typing import Any

import numpy as np

from experiments.setup.validate_sections import check_sections
from experiments.setup.validate_texts import validate_texts
from lora_jax import data
from lora_jax.suggest import nearest

_POSITIVE = ("train.batch_size", "train.accumulate", "train.epochs", "data.buckets")
_NOT_NEGATIVE = ("seed", "train.log_every", "train.evaluate_every", "train.checkpoint_every")
_NOT_NEGATIVE += ("data.train", "data.draw", "data.validation", "optimizer.weight_decay")
_NOT_NEGATIVE += ("optimizer.warmup_steps", "train.max_steps", "train.evaluations")
_FINITE_AND_POSITIVE = ("optimizer.learning_rate", "optimizer.clip", "optimizer.eps")
_FINITE_AND_POSITIVE += ("optimizer.head_learning_rate",)
_MOST_ONE = ("optimizer.eps",)  # beyond that, it is all that an update is divided by
_DECAYS = ("optimizer.weight_decay",)
_RATES = ("optimizer.b1", "optimizer.b2", "optimizer.warmup_ratio", "model.head_dropout")
_FINITE = ("train.target_score",)
_SEEDS = ("seed",)  # JAX takes a larger seed as one of these
_PATTERNS = ("also_train", "quantize.patterns")
_MAY_BE_UNSET = ("model.head_dropout", "optimizer.head_learning_rate", "train.target_score")


def validate(config: dict[str, Any]) -> None:
    """Raise a `ValueError` that names the first invalid setting."""

    def require(names: tuple[str, ...], wanted: str, test: Any) -> None:
        for name in names:
            value = _setting(config, name)
            if value is None and name in _MAY_BE_UNSET:
                continue
            if value is None or not (math.isfinite(value) and test(value)):
                raise ValueError(f"config.{name} must be {wanted}, got {value}")

    check_sections(config)
    texts, source = "generate" in config, config["data"]["source"]
    if source not in (*data.SOURCES, *data.TEXT_SOURCES):
        near = nearest(source, data.TEXT_SOURCES if texts else data.SOURCES)
        raise ValueError(f"unknown data.source '{source}'; nearest: {near}")
    if texts != (source in data.TEXT_SOURCES):
        other = "text-to-text tasks, as of configs/instruct.py" if not texts else "classifiers"
        raise ValueError(f"config.data.source '{source}' is of {other}, not of this config")
    require(_POSITIVE, "positive", lambda value: value > 0)
    require(
        _FINITE_AND_POSITIVE,
        "positive and finite in float32",
        lambda value: 0 < _single(value) < np.inf,
    )
    require(_MOST_ONE, "1 at most", lambda value: value <= 1)
    require(_NOT_NEGATIVE, "at least 0", lambda value: value >= 0)
    require(_RATES, "in [0, 1), in float32", lambda value: 0 <= _single(value) < 1)
    require(_DECAYS, "finite in float32", lambda value: _single(value) < np.inf)
    require(_FINITE, "finite", lambda value: True)
    require(_SEEDS, "below 2**32", lambda value: value < 2**32)
    if texts:
        validate_texts(config)
    for name in _PATTERNS:
        for each in _setting(config, name):
            if not isinstance(each, str):
                raise ValueError(f"config.{name}: {each!r} is not a pattern")
    size, parts = config["train"]["batch_size"], config["train"]["accumulate"]
    if size % parts:
        raise ValueError(
            f"config.train.batch_size {size} must be a multiple of train.accumulate {parts}"
        )
    study, section = config.get("study") or {}, config["data"]
    if section["source"] == "files" and study.get("column", section["name"]) != section["name"]:
        raise ValueError(
            f"config.data.source files: your own data cannot stand under {study['column']} of "
            f"{study['table']}; use configs/own_data.py"
        )
    if config["train"]["select"] not in ("last", "best"):
        raise ValueError(
            f"config.train.select '{config['train']['select']}': expected last or best"
        )


def _single(value: float) -> Any:
    """A number as the optimiser computes with it."""
    with np.errstate(all="ignore"):
        return np.float32(value)


def _setting(config: dict[str, Any], name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if name in _MAY_BE_UNSET else value[part]
    return value
