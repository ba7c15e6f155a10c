"""Make batches on a mesh of devices; each process makes the rows of its own devices."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from lora_jax import data

Collate = Callable[[data.Encoded, np.ndarray, int, int], dict[str, np.ndarray]]


def spread(
    rows: NamedSharding,
    collate: Collate,
    encoded: data.Encoded,
    indices: np.ndarray,
    padded_length: int,
    batch_size: int,
) -> dict[str, Array]:
    """Make the arrays of one batch, sharded along its rows.

    A padding row repeats the first example of its shard, or of the batch if the shard has none,
    with weight 0.

    Args:
      rows: the sharding of the rows.
      collate: makes the arrays of some rows; the other arguments are those of `data.collate`.
    """

    def span(index: Any) -> tuple[int, int]:
        start, stop, _ = index[0].indices(batch_size)
        return start, stop

    def part(start: int, stop: int) -> dict[str, np.ndarray]:
        own = indices[start:stop]
        if len(own):
            return collate(encoded, own, padded_length, stop - start)
        filler = collate(encoded, indices[:1], padded_length, stop - start)
        return {**filler, "weight": np.zeros_like(filler["weight"])}

    here = rows.addressable_devices_indices_map((batch_size,)).values()
    parts = {each: part(*each) for each in set(map(span, here))}
    like = next(iter(parts.values()))
    return {
        name: jax.make_array_from_callback(
            (batch_size, *array.shape[1:]), rows, lambda index, name=name: parts[span(index)][name]
        )
        for name, array in like.items()
    }
