"""How a model gets the examples of a task, and how its outputs are scored."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lora_jax import data
from lora_jax.models.parts.kv_cache import CachedStep
from lora_jax.sharding.mesh import Rules
from lora_jax.training.step import Loss


@dataclasses.dataclass(frozen=True, eq=False)
class Workload:
    """Everything that differs between a classifier's tasks and a language model's.

    A model's forward pass takes `input_ids`, `attention_mask` and `token_type_ids` of a batch, and
    returns an array (B, outputs).
    """

    evaluated: Callable[..., Any] | None
    """The forward pass in evaluation, with the same parameters; None if it is the same."""
    loss: Loss
    collate: Callable[[data.Encoded, np.ndarray, int, int], dict[str, np.ndarray]]
    """Makes a batch of some rows of a part (`data.collate`)."""
    examples: Callable[[str, np.ndarray], np.ndarray]
    """From a part's name and the outputs of its rows, (rows, outputs), to those of its examples."""
    labels: Callable[[str], np.ndarray | None]
    """From a part's name to the labels that its outputs are scored against, (n,)."""
    score: Callable[[Mapping[str, np.ndarray]], dict[str, float]]
    """From the outputs of each part, by name, to the metrics."""
    rules: Rules
    """The sharding rules of the model's own weights on a mesh."""
    step: CachedStep | None = None
    """The same model, one token at a time, for generation; None if it cannot generate."""
    prompt_limit: int = 0
    """The most tokens of a prompt for generation; a longer prompt loses its beginning."""
