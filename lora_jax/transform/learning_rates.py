"""Learning rates of single factors, as a transformation of an optimiser's updates."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array


def scale_updates(rates: Mapping[str, Mapping[str, Any]]) -> optax.GradientTransformation:
    """Multiply the updates of the factors named in `rates`, {path: {name: ratio}}."""

    def scale(path: str, factors: dict[str, Array]) -> dict[str, Array]:
        mine = rates.get(path, {})
        return {n: u * _expand(mine[n], u) if n in mine else u for n, u in factors.items()}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        adapters = {path: scale(path, factors) for path, factors in updates["adapters"].items()}
        return {**updates, "adapters": adapters}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _expand(rate: Any, update: Array) -> Array:
    """Reshape a rate (one for each matrix of a stack) so that it can multiply an update."""
    rate = jnp.asarray(rate, update.dtype)
    return rate.reshape(rate.shape + (1,) * (update.ndim - rate.ndim))
