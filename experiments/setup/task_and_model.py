"""What all runs of a task and a model share: examples as tokens, the model, and its weights."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array

from configs import settings
from lora_jax import data
from lora_jax.data.tokenised_task import TokenisedTask
from lora_jax.models.parts.kv_cache import CachedStep
from lora_jax.models.published.weight_files import find_gguf
from lora_jax.sharding.mesh import Rules

FEW_TOKENS = (np.zeros((2, 2), np.int32),) * 3
"""What a model takes of a batch of texts (`forward_pass.model_inputs`), for its shapes."""


@dataclasses.dataclass(frozen=True, eq=False)
class TaskAndModel:
    """A task's examples as tokens, and a model."""

    texts: TokenisedTask
    model: Callable[[Array], tuple[Callable[..., Any], Any]]
    """From a random key, for new parameters, to the forward pass and the parameters."""
    rules: Rules
    """The sharding rules of the model's own weights on a mesh."""
    weights_digest: str = ""
    """The digest of the weights; empty if the model has shapes in place of weights."""
    reading_digest: str = ""
    """The digest of the model's config and tokenizer files; empty where that of the weights is."""
    eval_forward: Callable[..., Any] | None = None
    """The forward pass in evaluation, with the same parameters; None if it is the same."""
    step: CachedStep | None = None
    """The same model, one token at a time, for generation; None if it cannot generate."""
    fresh: tuple[str, ...] = ()
    """The paths of the parameters that the base's files do not hold: those of a new head."""


def check_vocabulary(
    encoded: Mapping[str, data.Encoded], size: int, model: Any, types: int | None = None
) -> None:
    """Raise a ValueError for token ids, padding ids or token types that a model does not know.

    Args:
      size: the number of ids in the model's vocabulary.
      model: where the model is, for the message.
      types: the number of token types in the model's table; None if it has no such table.
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
def text_limit(section: settings.TokenSettings, most: int, model: Path) -> Iterator[int]:
    """Give the most tokens of a text: `max_length` of the config's `data`, or the model's limit.

    Args:
      most: the model's limit.

    Raises:
      ValueError: the code inside has raised `data.NoRoomError`; the message names both limits.
    """
    limit = min(section.max_length, most)
    try:
        yield limit
    except data.NoRoomError as error:
        file = find_gguf(model) or model / "config.json"
        raise ValueError(
            f"{error}; config.data.max_length is {section.max_length}, and {file} takes at most "
            f"{most:,} tokens"
        ) from None


def boundaries(
    encoded: Mapping[str, data.Encoded], section: settings.TokenSettings, limit: int
) -> tuple[int, ...]:
    """The lengths that the batches of all parts are padded to.

    `limit` is for one text. Rows that hold several texts may be longer; they get additional
    lengths, which no other row is padded to.
    """
    lengths = np.concatenate([each.lengths for each in encoded.values()])
    within, beyond = lengths[lengths <= limit], lengths[lengths > limit]
    made = data.bucket_boundaries(within, section.buckets, limit=limit)
    return made + (data.bucket_boundaries(beyond, section.buckets) if beyond.size else ())
