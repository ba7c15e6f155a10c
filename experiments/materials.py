"""What all runs of one task with one model share: examples, tokens, and the model's weights."""

import dataclasses
from typing import Any

import numpy as np

from experiments.problem import Problem
from lora_jax import data
from lora_jax.partition import nearest

DTYPES = ("float32", "bfloat16")
_OF_MODEL = ("dtype", "compute_dtype")


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
    """ValueError unless a config's model has dtypes that there are."""
    for name in _OF_MODEL:
        dtype = section.get(name)
        if dtype not in DTYPES and not (dtype is None and name != "dtype"):
            raise ValueError(
                f"unknown model.{name} '{dtype}'; nearest: {nearest(str(dtype), DTYPES)}"
            )


def check_vocabulary(encoded: dict[str, data.Encoded], size: int, model: Any) -> None:
    """ValueError for token ids that a model does not know."""
    if (largest := max(int(each.ids.max()) for each in encoded.values())) >= size:
        raise ValueError(
            f"the tokenizer in {model} gives id {largest}, the model's vocabulary has {size}"
        )


def boundaries(
    encoded: dict[str, data.Encoded], section: dict[str, Any], limit: int
) -> tuple[int, ...]:
    """The lengths that batches of any part are padded to.

    Rows that hold several texts may be longer than `limit`, which is of a text: they get further
    lengths, which no other row is padded to.
    """
    lengths = np.concatenate([each.lengths for each in encoded.values()])
    within, beyond = lengths[lengths <= limit], lengths[lengths > limit]
    made = data.bucket_boundaries(within, section["buckets"], limit=limit)
    return made + (data.bucket_boundaries(beyond, section["buckets"]) if beyond.size else ())
