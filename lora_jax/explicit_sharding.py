"""Shardings that are a part of arrays' types, as on a mesh of `AxisType.Explicit`."""

import jax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec


def explicit_sharding(array: Array) -> NamedSharding | None:
    """The sharding in an array's type, if there is one; some operations must be given it."""
    sharding = jax.typeof(array).sharding
    return sharding if any(part is not None for part in sharding.spec) else None


def replicated(array: Array) -> Array:
    """The array whole on every device, if a sharding is in its type; else the array itself.

    For operations that JAX does not divide by itself there: a factorisation, or a sum over a
    sharded axis of two factors.
    """
    if (sharding := explicit_sharding(array)) is None:
        return array
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec()))
