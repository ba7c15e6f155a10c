"""Put an adapter of others onto the model of a run."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import lora_jax as lj
import variants
from configs.settings import ClassifierConfig, RunConfig
from experiments.imports.adapter_source import AdapterSource
from experiments.runs.head_file import HEAD_FILE, with_head
from experiments.setup import from_config
from experiments.setup.task_and_model import TaskAndModel
from lora_jax.interchange.load_loralib import LoralibFile
from lora_jax.interchange.load_peft import Loaded
from lora_jax.interchange.names import MODEL, names_in
from lora_jax.interchange.peft_folder import PeftFolder
from lora_jax.models import families


def read_adapter(
    source: AdapterSource,
    config: RunConfig,
    model: TaskAndModel,
    alpha: float | None = None,
    enable_lora: Sequence[bool] | None = None,
) -> Loaded:
    """The model of a run with the adapter of a source; weights are stored as the config says.

    Args:
      alpha, enable_lora: of a file of loralib, as for `lj.load_loralib`.

    Raises:
      ValueError: the adapter is malformed, of a method that is not here, or of another model.
    """
    forward, params = model.model(jax.random.key(config.seed))
    storage = from_config.make_storage(config.quantize)
    shape: Any = model.texts.shape
    example = np.zeros((config.train.batch_size, model.texts.boundaries[0]), np.int32)
    inputs = example, example, example
    onto = forward, params, *inputs
    if not source.is_file:
        tensors, head = PeftFolder(source.path).names(), source.path / HEAD_FILE
        classifies = isinstance(config, ClassifierConfig)
        if classifies:
            _require_pool(source, config.model.pool, tensors, shape)
        names = names_in(shape, tensors)
        found = lj.load_peft(source.path, variants.from_peft, names, *onto, quantize=storage)
        return with_head(found, head) if classifies and head.is_file() else found
    stored = LoralibFile(source.path, alpha, enable_lora).stored()
    return lj.load_loralib(
        source.path,
        variants.from_peft,
        names_in(shape, [f"{MODEL}{name}" for name in stored]),
        *onto,
        alpha=alpha,
        enable_lora=enable_lora,
        quantize=storage,
    )


def _require_pool(source: AdapterSource, pool: str, tensors: Sequence[str], shape: Any) -> None:
    """Raise a ValueError if the head of an adapter reads something else than that of the config."""
    (place,) = families.places("pooler/kernel", shape)
    module = place.name.removesuffix(".weight")
    if pool == "mean" and any(f".{module}." in f".{name}" for name in tensors):
        raise ValueError(
            f"--from={source.given}: its head reads the first token ('{module}'), and that of the "
            "config the mean of all: --config.model.pool=cls"
        )
    if pool == "cls" and (source.path / HEAD_FILE).is_file():  # which exports write for a mean
        raise ValueError(
            f"--from={source.given}: its head ({HEAD_FILE}) reads the mean of all tokens, and that "
            "of the config the first: --config.model.pool=mean"
        )
