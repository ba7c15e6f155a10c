"""Parameters made on their shards: read part by part, so that no host holds a whole one."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Sharding, SingleDeviceSharding
from jax.typing import DTypeLike

from lora_jax.suggest import nearest, require_known

Shardings = Mapping[str, Sharding]
"""The sharding of each parameter by its path, such as `layers/attention/query/kernel`."""
Index = tuple[slice, ...]
"""A part of an array: a slice for each axis, with both start and stop given."""


def check_shardings(shardings: Shardings, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise a ValueError unless each parameter has a sharding that its shape allows."""
    for path in shardings:
        require_known(path, shapes, f"shardings: {path!r} is not a parameter")
    for path, shape in shapes.items():
        if path not in shardings:
            near = nearest(path, shardings)
            raise ValueError(f"shardings: parameter {path!r} has none; nearest that has: {near}")
        try:
            shardings[path].shard_shape(shape)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"shardings: parameter {path!r} of shape {shape}: {reason}") from None


def placed(
    shape: tuple[int, ...],
    dtype: DTypeLike,
    sharding: Sharding,
    read: Callable[[Index], np.ndarray],
) -> Array:
    """The array whose parts `read` returns, placed by a sharding.

    Only the parts on devices of this process are read. Each is read once, even if several devices
    hold it, and put onto them before the next is read. (`jax.make_array_from_callback` would read
    it once per device, and keep all parts until the last is read.)
    """
    devices: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        ranges = (part.indices(size) for part, size in zip(index or (), shape, strict=True))
        devices.setdefault(tuple((start, stop) for start, stop, _ in ranges), []).append(device)
    arrays = []
    for ranges, holders in devices.items():
        part = read(tuple(slice(*each) for each in ranges))
        targets = [SingleDeviceSharding(d, memory_kind=sharding.memory_kind) for d in holders]
        arrays += jax.block_until_ready([jax.device_put(part, target) for target in targets])
        del part
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays, dtype=dtype)


def from_layers(
    path: str, like: Any, sharding: Sharding, read: Callable[[int, Index], np.ndarray]
) -> Array:
    """A parameter placed by a sharding, from parts of its layers' tensors.

    Args:
      like: an object with its shape, layers first if it is stacked, and the dtype to cast to.
      read: returns a part of one layer; of layer 0 if the parameter is not stacked.
    """

    def part(index: Index) -> np.ndarray:
        whole = np.empty([each.stop - each.start for each in index], like.dtype)
        if not path.startswith("layers/"):
            whole[...] = read(0, index)
            return whole
        for row, layer in zip(whole, range(index[0].start, index[0].stop), strict=True):
            row[...] = read(layer, index[1:])
        return whole

    return placed(like.shape, like.dtype, sharding, part)
