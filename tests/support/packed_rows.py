"""Several documents in each row, as a decoder takes them with `segments`."""

from typing import NamedTuple

import numpy as np


class Packed(NamedTuple):
    """Four arrays (rows, length); a document's first token and padding have no weight."""

    ids: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    weights: np.ndarray


def pack(documents, rows, length):
    """`rows` has the numbers of the documents of each row."""
    ids, segments, positions = (np.zeros((len(rows), length), np.int32) for _ in range(3))
    for row, members in enumerate(rows):
        start = 0
        for segment, number in enumerate(members, 1):
            end = start + len(documents[number])
            ids[row, start:end], segments[row, start:end] = documents[number], segment
            positions[row, start:end] = np.arange(end - start)
            start = end
        positions[row, start:] = np.arange(length - start)
    return Packed(ids, segments, positions, ((segments > 0) & (positions > 0)).astype(np.float32))
