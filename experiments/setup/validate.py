"""Check the values of a config's settings before anything is loaded."""

import dataclasses
import operator
from collections.abc import Sequence

from configs.settings import (
    ClassifierConfig,
    GenerateSettings,
    OwnConfig,
    RunConfig,
    TextConfig,
    fields_of,
)
from experiments.setup import from_config
from lora_jax import data
from lora_jax.data.metrics import text_metrics
from lora_jax.messages import nearest, require_known
from lora_jax.models.parts.decoder import POLICIES
from lora_jax.training import optim
from lora_jax.training.optimizers import OF_SOME
from lora_jax.variant import Variant

DTYPES = ("float32", "bfloat16")
FROM_OPTIONS = "accuracy_written"
"""The metric of how often a text names the right answer, as LLM-Adapters and DoRA count it."""
LAYERS = "layers"
"""The value of `model.remat` that recomputes each layer; other values name policies."""


def validate(config: RunConfig) -> None:
    """Raise a `ValueError` that names the first invalid setting."""
    _require_source(config)
    for name, (field, _) in fields_of(type(config)).items():
        for check in field.metadata.get("checks", ()):
            value = operator.attrgetter(name)(config)
            if (value is not None or field.default is not None) and (wrong := check(value)):
                raise ValueError(f"config.{name}{wrong}")
    for key, value in config.data.files.items():
        kind, said = (bool, "True or False") if key == "regression" else (str, "a text")
        if value and not isinstance(value, kind):
            raise ValueError(f"config.data.files.{key} must be {said}, got {value!r}")
    if isinstance(config, TextConfig):
        _validate_texts(config)
    if config.optimizer.head_learning_rate is not None and not config.also_train:
        raise ValueError(
            "config.optimizer.head_learning_rate is the rate of config.also_train, which is empty"
        )
    for name in ("dtype", "compute_dtype"):
        dtype = getattr(config.model, name, None)
        if dtype is not None:
            require_known(dtype, DTYPES, f"unknown model.{name} '{dtype}'")
    targets = from_config.make_targets(config)
    _validate_optimizer(config, list(targets.values()))
    from_config.make_storage(config.quantize)
    schedule = config.optimizer.schedule
    require_known(schedule, optim.SCHEDULES, f"unknown config.optimizer.schedule '{schedule}'")
    for name, patterns in (
        ("also_train", config.also_train),
        ("quantize.patterns", config.quantize.patterns),
    ):
        for each in patterns:
            if not isinstance(each, str):
                raise ValueError(f"config.{name}: {each!r} is not a pattern")
    size, parts = config.train.batch_size, config.train.accumulate
    if size % parts:
        raise ValueError(
            f"config.train.batch_size {size} must be a multiple of train.accumulate {parts}"
        )
    study, section = config.study, config.data
    if section.source == "files" and study.column not in ("", section.name):
        raise ValueError(
            f"config.data.source files: your own data cannot stand under {study.column} of "
            f"{study.table}; use configs/own_data.py"
        )


def _validate_optimizer(config: RunConfig, variants: Sequence[Variant]) -> None:
    """Raise a ValueError for an optimiser or an average that does not go with other settings."""
    kind, name = from_config.kind_of_optimizer(config.train), config.train.optimizer or "adamw"
    section = config.optimizer
    for field in dataclasses.fields(section):
        unread = field.name in OF_SOME - {*kind.reads}
        if unread and getattr(section, field.name) != field.default:
            read = ", ".join(("learning_rate", "weight_decay", *kind.reads))
            raise ValueError(f"config.optimizer.{field.name}: {name} reads {read} only")
    if not (kind.averages or config.train.ema):
        return
    flag = "config.train.ema" if config.train.ema else f"config.train.optimizer {name}"
    if kind.averages and config.train.ema:
        raise ValueError(
            f"config.train.ema: {name} evaluates an average of its own; leave ema at 0"
        )
    if kind.averages and section.schedule != "constant":
        raise ValueError(
            f"{flag} averages steps in place of a decay: set config.optimizer.schedule=constant, "
            f"not {section.schedule}"
        )
    if kind.averages and not section.b1:
        raise ValueError(f"{flag} needs config.optimizer.b1 above 0")
    for each in variants:
        if type(each).update is not Variant.update:
            raise ValueError(
                f"{flag}: variant {config.variant.name} changes weights between steps, which an "
                "average would undo"
            )


def _require_source(config: RunConfig) -> None:
    """Raise a ValueError for an unknown source of data, or one of the other kind of tasks."""
    source = config.data.source
    sources = {
        TextConfig: (data.TEXT_SOURCES, "text-to-text tasks, as in configs/instruct.py"),
        OwnConfig: (data.ARRAY_SOURCES, "images and other arrays, as in configs/images.py"),
        ClassifierConfig: (data.SOURCES, "classifiers"),
    }
    known, _ = sources[type(config)]
    if source in known:
        return
    for others, said in sources.values():
        if source in others:
            raise ValueError(f"config.data.source '{source}' belongs to {said}, not to this config")
    raise ValueError(f"unknown data.source '{source}'; nearest: {nearest(source, known)}")


def _validate_texts(config: TextConfig) -> None:
    """Raise a ValueError for settings that only a language model's config has."""
    if config.generate.no_repeat_ngram and config.generate.beams == 1:
        raise ValueError("config.generate.no_repeat_ngram acts in a search of 2 beams or more")
    if config.generate.length_penalty != 1 and config.generate.beams == 1:
        raise ValueError("config.generate.length_penalty acts in a search of 2 beams or more")
    if not (config.generate.prompt_ngrams or config.generate.no_repeat_ngram):
        raise ValueError("config.generate.prompt_ngrams acts with no_repeat_ngram above 0")
    text_metrics.check_names(config.generate.metrics, FROM_OPTIONS)
    if remat := config.model.remat:
        require_known(remat, (LAYERS, *POLICIES), f"unknown model.remat '{remat}'")


def check_written(generate: GenerateSettings, task: data.TextTask) -> None:
    """Raise a ValueError if generated texts could not be scored as a config's `generate` says.

    The model generates only after training, so this is checked early.
    """
    if generate.scored == 0:
        return
    parts = task.extra if generate.part == "extra" else {"": task.validation}
    if not parts:
        raise ValueError(f"config.generate.part extra: task '{task.name}' has no further parts")
    for name in generate.metrics:
        try:
            if name != FROM_OPTIONS:
                text_metrics.score_texts([name], ["text"], [["text"]])
                continue
            for part in parts.values():
                text_metrics.extracted_answers([""] * len(part), part)
        except (ValueError, ModuleNotFoundError) as error:
            raise ValueError(f"config.generate.metrics '{name}': {error}") from None
