"""What all runs of one task with one model share: examples, tokens, and the model's weights."""

import dataclasses
from typing import Any

import numpy as np

from experiments.problem import Problem
from lora_jax import data
from lora_jax.partition import nearest

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, eq=False)
class Materials:
    """Examples as tokens, and a model, as the sections `data` and `model` of a config say."""

    task: data.Task | data.TextTask
    problem: Problem
    tokenizer: data.Tokenizer
    encoded: dict[str, data.Encoded]
    """`train` and `validation`, and the task's other parts by their names."""
    examples_per_second: float
    """How fast the training texts were tokenised (when that was done, if they were cached)."""
    boundaries: tuple[int, ...]
    weights_digest: str


def check_dtype(section: dict[str, Any]) -> None:
    """ValueError unless a config's model has a dtype that there is."""
    if (dtype := section["dtype"]) not in DTYPES:
        raise ValueError(f"unknown model.dtype '{dtype}'; nearest: {nearest(dtype, DTYPES)}")


def check_vocabulary(encoded: dict[str, data.Encoded], size: int, model: Any) -> None:
    """ValueError for token ids that a model does not know."""
    if (largest := max(int(each.ids.max()) for each in encoded.values())) >= size:
        raise ValueError(
            f"the tokenizer in {model} gives id {largest}, the model's vocabulary has {size}"
        )


def boundaries(
    encoded: dict[str, data.Encoded], section: dict[str, Any], limit: int
) -> tuple[int, ...]:
    """The lengths that batches of any part are padded to."""
    lengths = np.concatenate([each.lengths for each in encoded.values()])
    return data.bucket_boundaries(lengths, section["buckets"], limit=limit)
