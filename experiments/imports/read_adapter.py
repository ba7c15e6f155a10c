"""Put an adapter of others onto the model of a run."""

from typing import Any

import jax
import numpy as np

import lora_jax as lj
import variants
from configs.settings import RunConfig
from experiments.imports.adapter_source import AdapterSource
from experiments.setup import from_config
from experiments.setup.task_and_model import TaskAndModel
from lora_jax.interchange.families import names_in
from lora_jax.interchange.load_peft import Loaded
from lora_jax.interchange.peft_folder import PeftFolder


def read_adapter(source: AdapterSource, config: RunConfig, model: TaskAndModel) -> Loaded:
    """The model of a run with the adapter of a source; weights are stored as the config says.

    Raises:
      ValueError: the adapter is malformed, of a method that is not here, or of another model.
    """
    forward, params = model.model(jax.random.key(config.seed))
    storage = from_config.make_storage(config.quantize)
    shape: Any = model.texts.shape
    names = names_in(shape, PeftFolder(source.path).names())
    example = np.zeros((config.train.batch_size, model.texts.boundaries[0]), np.int32)
    inputs = example, example, example
    return lj.load_peft(
        source.path, variants.from_peft, names, forward, params, *inputs, quantize=storage
    )
