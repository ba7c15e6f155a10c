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
from lora_jax.interchange.families import names_in
from lora_jax.interchange.load_source import Loaded
from lora_jax.interchange.loralib_file import LoralibFile
from lora_jax.interchange.peft_folder import MODEL, PeftFolder
from lora_jax.models.published.torch_names import torch_name


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
        tensors = PeftFolder(source.path).names()
        means = isinstance(config, ClassifierConfig) and config.model.pool == "mean"
        if means:
            _require_no_pooler(source, tensors, shape)
        names = names_in(shape, tensors)
        found = lj.load_peft(source.path, variants.from_peft, names, *onto, quantize=storage)
        head = source.path / HEAD_FILE
        return with_head(found, head) if means and head.is_file() else found
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


def _require_no_pooler(source: AdapterSource, tensors: Sequence[str], shape: Any) -> None:
    """Raise a ValueError if the head of an adapter reads the first token, by a layer of its own."""
    module = torch_name("pooler/kernel", shape).removesuffix(".weight")
    if any(f".{module}." in f".{name}" for name in tensors):
        raise ValueError(
            f"--from={source.given}: its head reads the first token ('{module}'), and that of the "
            "config the mean of all: --config.model.pool=cls"
        )
