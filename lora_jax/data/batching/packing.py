"""Pack several documents into one row: fewer rows, hardly any padding, and the same losses.

Given `segments` and `positions`, a decoder computes the same for each document as for the document
alone (Krell et al., 2021, arXiv:2107.02027).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Packed(NamedTuple):
    """Rows of documents: four arrays of shape (rows, length).

    `ids` is int32. `segments` is int32: the document's number in its row, from 1, and 0 for
    padding. `positions` is int32, from 0 in every document and in the padding. `weights` is
    float32, the weight of each token in the loss: 0 for padding and for a document's first token.
    """

    ids: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    weights: np.ndarray


def pack(
    sequences: Sequence[Sequence[int] | np.ndarray],
    length: int,
    weights: Sequence[Sequence[float] | np.ndarray] | None = None,
    pad_id: int = 0,
) -> Packed:
    """Put each sequence, in their order, undivided into the first row that has room for it.

    Args:
        sequences: token ids; one longer than `length`, or an empty one, is a ValueError.
        length: the number of tokens of a row.
        weights: the weight of each token of each sequence in the loss, by default 1; use 0 for a
            prompt.
        pad_id: the token that fills up a row.
    """
    given = [np.asarray(each, np.int32) for each in sequences]
    if not given:
        raise ValueError("there is nothing to pack")
    for number, ids in enumerate(given):
        if ids.ndim != 1 or not 1 <= len(ids) <= length:
            raise ValueError(
                f"sequence {number} has shape {ids.shape}; rows take 1 to {length} tokens"
            )
    if weights is None:
        weights = [np.ones(len(ids), np.float32) for ids in given]
    shares = [np.asarray(each, np.float32) for each in weights]
    if [each.shape for each in shares] != [ids.shape for ids in given]:
        raise ValueError("weights must have a number for every token of every sequence")

    rows = _first_fit([len(ids) for ids in given], length)
    shape = (len(rows), length)
    packed = Packed(
        np.full(shape, pad_id, np.int32),
        np.zeros(shape, np.int32),
        np.zeros(shape, np.int32),
        np.zeros(shape, np.float32),
    )
    for row, members in enumerate(rows):
        start = 0
        for segment, number in enumerate(members, 1):
            here = (row, slice(start, start + len(given[number])))
            packed.ids[here] = given[number]
            packed.segments[here] = segment
            packed.positions[here] = np.arange(len(given[number]))
            packed.weights[here] = shares[number]
            packed.weights[row, start] = 0  # nothing precedes it to predict it from
            start += len(given[number])
        packed.positions[row, start:] = np.arange(length - start)
    return packed


def _first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """The sequences of each row.

    A tree of maxima over the rows' room finds the first row that fits, in a time logarithmic in the
    number of sequences. A million documents take seconds.
    """
    leaves = 1 << max(len(lengths) - 1, 1).bit_length()
    room = [capacity] * (2 * leaves)  # room[i] is the larger of room[2i] and room[2i + 1]
    rows: list[list[int]] = []
    for number, size in enumerate(lengths):
        node = 1
        while node < leaves:
            node = 2 * node + (room[2 * node] < size)
        row = node - leaves
        if row == len(rows):
            rows.append([])
        rows[row].append(number)
        room[node] -= size
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return rows
