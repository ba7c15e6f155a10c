"""Check the values of a config's settings before anything is loaded."""

import operator

from configs.settings import DecoderSettings, ModelSettings, RunConfig, TextConfig, fields_of
from experiments.setup import from_config
from experiments.setup.validate_texts import validate_texts
from lora_jax import data
from lora_jax.suggest import nearest
from lora_jax.training import optim

DTYPES = ("float32", "bfloat16")


def validate(config: RunConfig) -> None:
    """Raise a `ValueError` that names the first invalid setting."""
    _require_source(config)
    for name, (field, _) in fields_of(type(config)).items():
        for check in field.metadata.get("checks", ()):
            value = operator.attrgetter(name)(config)
            if (value is not None or field.default is not None) and (wrong := check(value)):
                raise ValueError(f"config.{name}{wrong}")
    if isinstance(config, TextConfig):
        validate_texts(config)
    _require_dtypes(config.model)
    from_config.make_targets(config)
    from_config.make_storage(config.quantize)
    optim.schedule(config.optimizer.schedule, 1.0, 1)  # an unknown one raises
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


def _require_source(config: RunConfig) -> None:
    """Raise a ValueError for an unknown source of data, or one of the other kind of tasks."""
    texts, source = isinstance(config, TextConfig), config.data.source
    if source not in (*data.SOURCES, *data.TEXT_SOURCES):
        near = nearest(source, data.TEXT_SOURCES if texts else data.SOURCES)
        raise ValueError(f"unknown data.source '{source}'; nearest: {near}")
    if texts != (source in data.TEXT_SOURCES):
        other = "text-to-text tasks, as of configs/instruct.py" if not texts else "classifiers"
        raise ValueError(f"config.data.source '{source}' is of {other}, not of this config")


def _require_dtypes(model: ModelSettings) -> None:
    """Raise a ValueError for an unknown dtype."""
    dtypes = {"dtype": model.dtype}
    if isinstance(model, DecoderSettings) and model.compute_dtype is not None:
        dtypes["compute_dtype"] = model.compute_dtype
    for name, dtype in dtypes.items():
        if dtype not in DTYPES:
            raise ValueError(f"unknown model.{name} '{dtype}'; nearest: {nearest(dtype, DTYPES)}")
