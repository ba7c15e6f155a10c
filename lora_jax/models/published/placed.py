"""Parameters made from a checkpoint's tensors, whole or on their shards.

On shards they are read part by part, so that no host holds a whole one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Sharding, SingleDeviceSharding
from jax.typing import DTypeLike

from lora_jax.error_text import said
from lora_jax.suggest import nearest, require_known

LEAF = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
"""The last part of a parameter's path, and of its tensor's name in a checkpoint."""
Shardings = Mapping[str, Sharding]
"""The sharding of each parameter by its path, such as `layers/attention/query/kernel`."""
Index = tuple[slice, ...]
"""A part of an array: a slice for each axis, with both start and stop given."""


class Place(NamedTuple):
    """The place of one layer of a parameter: a tensor, whether transposed, and which third of it.

    `part` is 0, 1 or 2 for a third, None for the whole tensor.
    """

    name: str
    transposed: bool
    part: int | None

    def tensor_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The whole tensor's shape, from the shape of one layer of the parameter."""
        if self.transposed:
            return shape[::-1]
        return shape if self.part is None else (*shape[:-1], 3 * shape[-1])

    def inside(self, index: Index, shape: tuple[int, ...]) -> Index:
        """The index into the tensor, from an index into one layer of the parameter, of `shape`."""
        if self.transposed or self.part is None:
            return index[::-1] if self.transposed else index
        first = self.part * shape[-1]
        return (*index[:-1], slice(first + index[-1].start, first + index[-1].stop))

    def cut(self, tensor: np.ndarray) -> np.ndarray:
        """One layer of the parameter, as a view of the tensor."""
        if self.transposed:
            return tensor.T
        return tensor if self.part is None else np.split(tensor, 3, axis=-1)[self.part]


class Piece(NamedTuple):
    """What a tensor holds: one layer of a stacked parameter, or a parameter that is not stacked."""

    path: str
    layer: int | None
    place: Place


def tensors_of(places: Mapping[str, Sequence[Place]]) -> dict[str, list[Piece]]:
    """What each tensor holds, by its name in the order of the layers.

    It is the inverse of the table that parameters are read by.

    Args:
      places: the places of each parameter by its path, one for each layer if it is stacked.
    """
    made: dict[str, list[Piece]] = {}
    for path, each in places.items():
        for number, place in enumerate(each):
            layer = number if path.startswith("layers/") else None
            made.setdefault(place.name, []).append(Piece(path, layer, place))
    names = sorted(made, key=lambda name: made[name][0].layer or 0)
    return {name: sorted(made[name], key=lambda piece: piece.place.part or 0) for name in names}


class Reader(Protocol):
    """Tensors by name; `part` is called instead of `read` for parameters on their shards."""

    def read(self, name: str) -> np.ndarray: ...
    def part(self, name: str, index: Index) -> np.ndarray: ...


def layer_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one layer of a stacked parameter, or of an unstacked parameter."""
    return shape[1:] if path.startswith("layers/") else shape


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
            reason = said(error)
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


def parameter(
    source: Reader, places: Sequence[Place], path: str, like: Any, sharding: Sharding | None
) -> Array:
    """A parameter from the tensors of its layers, or of the one place of an unstacked parameter.

    Args:
      like: an object with its shape, layers first if it is stacked, and the dtype to cast to.
      sharding: if given, only the parts on devices of this process are read.
    """
    stacked = path.startswith("layers/")
    if sharding is None:
        whole: np.ndarray = np.empty(like.shape, like.dtype)
        for layer, place in zip(whole if stacked else whole[None], places, strict=True):
            layer[...] = place.cut(source.read(place.name))
        return jnp.asarray(whole)

    def part(index: Index) -> np.ndarray:
        made = np.empty([each.stop - each.start for each in index], like.dtype)
        own, chosen = (index[1:], places[index[0]]) if stacked else (index, places)
        for layer, place in zip(made if stacked else made[None], chosen, strict=True):
            found = source.part(place.name, place.inside(own, layer_shape(path, like.shape)))
            layer[...] = found.T if place.transposed else found
        return made

    return placed(like.shape, like.dtype, sharding, part)
