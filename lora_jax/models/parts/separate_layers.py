"""Stacked layers as separate arrays, for programs on CPUs that unroll their loop over layers.

A program copies layer i out of an array of stacked layers, in every call. If each layer is an array
of its own, nothing is copied: XLA drops the stack of which an unrolled loop takes single layers.

    forward = jax.jit(lambda params, *inputs: model(stacked(params), *inputs))
    forward(separate(params), *inputs)
"""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, ShapeDtypeStruct
from jax.core import Tracer
from jax.sharding import SingleDeviceSharding

from lora_jax.models.parts.modules import layers_at_once
from lora_jax.partition import path_name


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layers:
    """The entries of an array along its first axis."""

    each: tuple[Array, ...]


def separate(
    tree: Any, unroll: int | None = None, remat: bool | str = False, *, shapes: bool = False
) -> Any:
    """The same tree with `Layers` in place of arrays of stacked layers, whose memory they share.

    These are the arrays below a key `layers`, where models stack their layers. A tree stays as it
    is if the loop over its layers is not unrolled, or if it is not on one CPU.

    Args:
      unroll: with `remat`, as the model has them (see `over_layers`).
      shapes: whether shapes are separated as the arrays that they stand for.
    """
    pairs, treedef = jax.tree_util.tree_flatten_with_path(tree)
    found = {id(leaf): leaf for keys, leaf in pairs if "layers" in path_name(keys).split("/")}
    counts = {leaf.shape[0] if np.ndim(leaf) else 0 for leaf in found.values()}
    if len(counts) != 1 or not all(_on_one_cpu(leaf, shapes) for leaf in found.values()):
        return tree
    (count,) = counts
    if count < 2 or layers_at_once(count, unroll, remat) < count:
        return tree
    # Leaves that are one array stay one: groups of trials share a base.
    apart = {which: _separated(leaf) for which, leaf in found.items()}
    return treedef.unflatten([apart.get(id(leaf), leaf) for _, leaf in pairs])


def stacked(tree: Any) -> Any:
    """Undo `separate`, inside a compiled program."""

    def whole(leaf: Any) -> Any:
        return jnp.stack(leaf.each) if isinstance(leaf, Layers) else leaf

    return jax.tree.map(whole, tree, is_leaf=lambda leaf: isinstance(leaf, Layers))


def _separated(leaf: Array | ShapeDtypeStruct) -> Layers:
    (device,) = _devices(leaf)
    if isinstance(leaf, ShapeDtypeStruct):
        placed = SingleDeviceSharding(device)
        row = ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=placed)
        return Layers((row,) * leaf.shape[0])
    return Layers(tuple(jax.device_put(row, device) for row in np.asarray(leaf)))


def _devices(leaf: Array | ShapeDtypeStruct) -> Collection[Any]:
    """Where an array is, or will be if it has only a shape yet."""
    if isinstance(leaf, Array):
        return leaf.devices()
    return jax.devices()[:1] if leaf.sharding is None else leaf.sharding.device_set


def _on_one_cpu(leaf: Any, shapes: bool) -> bool:
    kinds = (Array, ShapeDtypeStruct) if shapes else (Array,)
    if not isinstance(leaf, kinds) or isinstance(leaf, Tracer):
        return False
    (device, *others) = _devices(leaf)
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return device.platform == "cpu" and not others and not is_key
