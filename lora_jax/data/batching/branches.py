"""All options of a question in one row, after its prompt, which is then computed only once."""

import dataclasses
import itertools

import numpy as np

from lora_jax.data.tokenizing.tokenize import Encoded


def branched(encoded: Encoded, offsets: np.ndarray) -> Encoded:
    """Join the rows of `encode_options` by question: its prompt, then its options one by one.

    `type_ids` are 0 in the prompt and k in option k, from 1 on, as
    `lora_jax.models.parts.completion.option_likelihoods` takes them. `labels` are the number of
    tokens of all options of a question, int64. If truncation left prompts of different lengths in a
    question's rows, the shortest is used.

    Args:
      offsets: question i has rows `offsets[i]` to `offsets[i + 1]` of `encoded`.
    """
    rows, types = [], []
    for first, end in itertools.pairwise(offsets):
        parts = [_row(encoded, index) for index in range(first, end)]
        stem = min((ids[kinds == 0] for ids, kinds in parts), key=len)
        options = [ids[kinds == 1] for ids, kinds in parts]
        rows.append(np.concatenate([stem, *options]))
        lengths = [len(stem), *map(len, options)]
        types.append(np.repeat(np.arange(len(lengths), dtype=np.int32), lengths))
    return dataclasses.replace(
        encoded,
        ids=np.concatenate(rows),
        type_ids=np.concatenate(types),
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        labels=np.array([int((each > 0).sum()) for each in types], np.int64),
    )


def _row(encoded: Encoded, index: int) -> tuple[np.ndarray, np.ndarray]:
    part = slice(encoded.offsets[index], encoded.offsets[index + 1])
    return encoded.ids[part], encoded.type_ids[part]
