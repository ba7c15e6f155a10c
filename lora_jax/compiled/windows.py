"""Gathers and scatters by NumPy: windows of an array, wherever indices say.

Each returns NotImplemented where a window is not inside the array: what happens then depends on the
mode, and JAX knows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def gather(params: Mapping[str, Any], x: np.ndarray, indices: np.ndarray) -> Any:
    """Windows of an array."""
    dims = params["dimension_numbers"]
    batching = dims.operand_batching_dims, dims.start_indices_batching_dims
    gone = dims.collapsed_slice_dims + batching[0]
    places = _places(x, indices, dims.start_index_map, batching, gone, params["slice_sizes"])
    if places is None:
        return NotImplemented
    found = x[places]
    window = x.ndim - len(gone)
    return np.moveaxis(found, range(found.ndim - window, found.ndim), dims.offset_dims)


def scatter(params: Any, x: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> Any:
    """The array with its windows replaced."""
    return _put(params, x, indices, updates, np.ndarray.__setitem__)


def scatter_add(params: Any, x: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> Any:
    """The array with something added to its windows, which may overlap."""
    return _put(params, x, indices, updates, np.add.at)


def _put(
    params: Any, x: np.ndarray, indices: np.ndarray, updates: np.ndarray, put: Callable[..., Any]
) -> Any:
    dims = params["dimension_numbers"]
    batching = dims.operand_batching_dims, dims.scatter_indices_batching_dims
    gone = dims.inserted_window_dims + batching[0]
    window = [axis for axis in range(x.ndim) if axis not in gone]
    sizes = [1] * x.ndim
    for axis, own in zip(window, dims.update_window_dims, strict=True):
        sizes[axis] = updates.shape[own]
    into = dims.scatter_dims_to_operand_dims
    places = _places(x, indices, into, batching, gone, sizes)
    if places is None:
        return NotImplemented
    result = np.array(x)
    put(result, places, np.moveaxis(updates, dims.update_window_dims, range(-len(window), 0)))
    return result


def _places(
    x: np.ndarray,
    indices: np.ndarray,
    axes: Sequence[int],
    batching: tuple[Sequence[int], Sequence[int]],
    gone: Sequence[int],
    sizes: Sequence[int],
) -> tuple[np.ndarray, ...] | None:
    """An index of windows: its axes are those of the indices, then those of the windows.

    Args:
      x: the array.
      indices: where the windows begin, along the last axis for each of `axes` of the array.
      batching: axes of the array that go along with axes of the indices.
      gone: axes of the array that windows do not have.
      sizes: of a window, along each axis of the array.

    Returns:
      None if a window is not inside the array.
    """
    starts = np.moveaxis(indices, -1, 0)
    room = [x.shape[axis] - sizes[axis] for axis in axes]
    if any(((each < 0) | (each > most)).any() for each, most in zip(starts, room, strict=True)):
        return None
    shape = indices.shape[:-1]
    firsts = dict(zip(axes, starts, strict=True))
    firsts |= {axis: np.indices(shape)[own] for axis, own in zip(*batching, strict=True)}
    window = [axis for axis in range(x.ndim) if axis not in gone]
    places = []
    for axis in range(x.ndim):
        first = np.asarray(firsts.get(axis, np.zeros(shape, int)))
        place = first.reshape(first.shape + (1,) * len(window))
        if axis in window:
            after = (1,) * (len(window) - window.index(axis) - 1)
            place = place + np.arange(sizes[axis]).reshape(-1, *after)
        places.append(place)
    return tuple(places)
