"""How a task is put to a model, and what is made of what the model says."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax import Array

from lora_jax import data
from lora_jax.models.parts.kv_cache import CachedStep
from lora_jax.sharding.mesh import Rules
from lora_jax.training.step import Loss


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What differs between a classifier's tasks and a language model's.

    A model's forward pass takes `input_ids`, `attention_mask` and `token_type_ids` of a batch, and
    gives (B, outputs) numbers of its rows.
    """

    model: Callable[[Array], tuple[Callable[..., Any], Any]]
    """The forward pass and the parameters, of which a key draws those that are new."""
    evaluated: Callable[..., Any] | None
    """The forward pass of the same parameters without training, where it is another one."""
    loss: Loss
    collate: Callable[[data.Encoded, np.ndarray, int, int], dict[str, np.ndarray]]
    """The batch of some rows of a part (`data.collate`)."""
    examples: Callable[[str, np.ndarray], np.ndarray]
    """Of a part's name and (rows, outputs): what they say of its examples, (n, outputs)."""
    labels: Callable[[str], np.ndarray | None]
    """What a part's outputs are scored against, (n,)."""
    score: Callable[[Mapping[str, np.ndarray]], dict[str, float]]
    """The metrics of the outputs of parts."""
    rules: Rules
    """How the model's own weights are cut over a mesh."""
    step: CachedStep | None = None
    """The same model token by token, where it can write."""
    longest: int = 0
    """Tokens of a prompt that it writes after, at most; a longer one loses its beginning."""
