"""What all runs of one task with one model share: examples, tokens, and the model's weights."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.setup.workload import Problem
from lora_jax import data
from lora_jax.models.published.weight_files import find_gguf
from lora_jax.suggest import nearest

DTYPES = ("float32", "bfloat16")
_OF_MODEL = ("dtype", "compute_dtype")


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
    """Examples as tokens, as the section `data` of a config says: all that needs no weights."""

    task: data.Task | data.TextTask
    tokenizer: data.Tokenizer
    encoded: dict[str, data.Encoded]
    """`train` and `validation`, and the task's other parts by their names."""
    examples_per_second: float
    """How fast the training texts were tokenised (when that was done, if they were cached)."""
    boundaries: tuple[int, ...]

    @property
    def longest(self) -> int:
        """The tokens of the longest batch that trains."""
        longest = int(self.encoded["train"].lengths.max())
        return next(each for each in self.boundaries if each >= longest)


@dataclasses.dataclass(frozen=True, eq=False)
class Materials(Texts):
    """Examples as tokens, and a model, as the sections `data` and `model` of a config say."""

    problem: Problem
    weights_digest: str = ""
    """Empty where the model has shapes in the place of weights."""


def check_dtype(section: dict[str, Any]) -> None:
    """ValueError unless a config's model has dtypes that there are."""
    for name in _OF_MODEL:
        dtype = section.get(name)
        if dtype not in DTYPES and not (dtype is None and name != "dtype"):
            raise ValueError(
                f"unknown model.{name} '{dtype}'; nearest: {nearest(str(dtype), DTYPES)}"
            )


def check_vocabulary(
    encoded: dict[str, data.Encoded], size: int, model: Any, types: int | None = None
) -> None:
    """ValueError for token ids, that of padding too, or token types that a model does not know.

    Args:
      types: how many there are in the model's table; None of a model that has no such table.
    """
    for each in encoded.values():
        for name, ids, rows in (("id", each.ids, size), ("type", each.type_ids, types)):
            if rows is None or not ids.size or 0 <= ids.min() <= ids.max() < rows:
                continue
            wrong = int(ids.max() if ids.max() >= rows else ids.min())
            what = "vocabulary" if name == "id" else "table of token types"
            raise ValueError(
                f"the tokenizer in {model} gives {name} {wrong}, the model's {what} has {rows}"
            )
        if not 0 <= each.pad_id < size:
            raise ValueError(
                f"the tokenizer in {model} pads with id {each.pad_id}, the model's vocabulary has "
                f"{size}"
            )


@contextlib.contextmanager
def text_limit(section: dict[str, Any], most: int, model: Path) -> Iterator[int]:
    """How many tokens of a text are taken: as the config's `data` says, or all that a model takes.

    Raises:
      ValueError: in the place of what says that a text has no room; it names both.
    """
    limit = min(section["max_length"], most)
    try:
        yield limit
    except data.NoRoomError as error:
        file = find_gguf(model) or model / "config.json"
        raise ValueError(
            f"{error}; config.data.max_length is {section['max_length']}, and {file} takes at most "
            f"{most:,} tokens"
        ) from None


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
