"""JAX's `gather` by NumPy: rows, columns and single numbers of arrays by their places."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def gather(params: Mapping[str, Any], x: np.ndarray, indices: np.ndarray) -> Any:
    """Windows of an array; NotImplemented if one is not inside it, so that JAX handles that."""
    dims, sizes = params["dimension_numbers"], params["slice_sizes"]
    starts = np.moveaxis(indices, -1, 0)
    room = [x.shape[axis] - sizes[axis] for axis in dims.start_index_map]
    if any(((each < 0) | (each > most)).any() for each, most in zip(starts, room, strict=True)):
        return NotImplemented
    stacked = dims.operand_batching_dims, dims.start_indices_batching_dims
    firsts = dict(zip(dims.start_index_map, starts, strict=True))
    firsts |= {axis: np.indices(starts[0].shape)[own] for axis, own in zip(*stacked, strict=True)}
    window = [axis for axis in range(x.ndim) if axis not in dims.collapsed_slice_dims + stacked[0]]
    places = []
    for axis in range(x.ndim):
        first = np.asarray(firsts.get(axis, 0))
        place = first.reshape(first.shape + (1,) * len(window))
        if axis in window:
            after = (1,) * (len(window) - window.index(axis) - 1)
            place = place + np.arange(sizes[axis]).reshape(-1, *after)
        places.append(place)
    found = x[tuple(places)]  # its axes: (*those of the indices, *those of the window)
    return np.moveaxis(found, range(found.ndim - len(window), found.ndim), dims.offset_dims)
