"""Prepare a state's leaves for a checkpoint, and restore them: names, copies and shardings."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.files.arrays import is_key, type_name


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """The leaves by their paths, in the order of `jax.tree.leaves`."""
    leaves: dict[str, Any] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(keys, simple=True, separator="/") or "value"
        if name in leaves:
            raise ValueError(f"two leaves are called {name}: each needs a name of its own")
        if not isinstance(leaf, bool | int | float | complex) and not hasattr(leaf, "dtype"):
            raise ValueError(
                f"leaf {name} is a {type(leaf).__name__}: expected an array or a number"
            )
        leaves[name] = leaf
    if not leaves:
        raise ValueError("a state without leaves cannot be saved or restored")
    return leaves


def bare(leaf: Any) -> Any:
    """The array of a leaf: the words of a key; for a number, an array without axes."""
    if isinstance(leaf, jax.Array):
        return jax.random.key_data(leaf) if is_key(leaf) else leaf
    return np.asarray(leaf)


def copy(leaf: Any, alone: bool = True, owned: bool = False) -> Any:
    """A copy that donation cannot delete; on the device, so that it waits for no computation.

    With several processes (not `alone`), Orbax takes an array that one process holds whole from
    host memory. An array that nobody else has (`owned`) needs no copy on the device.
    """
    array = bare(leaf)
    if isinstance(array, jax.Array) and (alone or not array.is_fully_addressable):
        return array if owned else jnp.copy(array)
    return np.array(array)


def require_same_leaves(saved: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """Raise a ValueError that names the first leaf whose types differ, or that one side lacks.

    Args:
      saved: for each leaf, a sequence that begins with its type.
    """
    for name, leaf in wanted.items():
        if name not in saved:
            raise ValueError(
                f"{where} has no leaf {name}, which this state has as {type_name(leaf)}"
            )
        if saved[name][0] != type_name(leaf):
            raise ValueError(
                f"{where} has leaf {name} as {saved[name][0]}, this state as {type_name(leaf)}"
            )
    for name in saved:
        if name not in wanted:
            raise ValueError(f"{where} has a leaf {name}, {saved[name][0]}, which this state lacks")


def _sharding(leaf: Any) -> jax.sharding.Sharding | None:
    """The sharding of a restored leaf; None leaves it to JAX, as for an array not placed before."""
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return None
    return getattr(leaf, "sharding", None)


def template(leaf: Any, alone: bool = True) -> Any:
    """The form in which Orbax restores a leaf: sharded, or in host memory (see `copy`)."""
    sharding = _sharding(leaf)
    if sharding is not None and not alone and sharding.is_fully_addressable:
        sharding = None
    if sharding is not None and not is_key(leaf) and math.prod(leaf.shape):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    data = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    data = data if hasattr(data, "dtype") else np.asarray(data)
    return np.zeros(data.shape, data.dtype)


def restored_like(array: Any, leaf: Any) -> Any:
    """A restored array, converted to the kind of `leaf`: an array, a key or a number."""
    if isinstance(array, jax.Array) or isinstance(leaf, np.ndarray):
        return array
    sharding = _sharding(leaf)
    if is_key(leaf):
        wrap = partial(
            jax.random.wrap_key_data, impl=jax.random.key_impl(jnp.empty((), leaf.dtype))
        )
        return wrap(array) if sharding is None else jax.jit(wrap, out_shardings=sharding)(array)
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return jnp.array(array) if sharding is None else jax.device_put(array, sharding)
    return type(leaf)(array.item())
