"""Learning rates of single factors, as a transformation of an optimiser's updates."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array
from optax import GradientTransformation

from lora_jax.transform.matrices import AxesOf, axes_of_matrices
from lora_jax.transform.placement import Frozen, Trainable, grouped
from lora_jax.transform.shared_arrays import split_shared

Rates = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class ForWeights:
    """An optimiser that is made only when the weights are known.

    `make(axes, rates)` gives it. `axes` finds the matrices among the trainables. `rates` multiplies
    updates by the learning rates that variants give their factors. It is not put after the
    optimiser, which applies it itself where it steps: schedule-free averages its steps.
    """

    make: Callable[[AxesOf, GradientTransformation], GradientTransformation]


def at_own_rates(tx: GradientTransformation | ForWeights, frozen: Frozen) -> GradientTransformation:
    """`tx`, and after it the learning rates that variants give their factors, if any does."""
    rates: dict[str, dict[str, Any]] = {}
    shared: dict[str, dict[str, Any]] = {}
    nothing: Trainable = {"adapters": {path: {} for path in frozen.constants}}
    for number, (variant, factors) in enumerate(grouped(nothing, frozen)):
        constants = {path: each.constants for path, each in factors.items()}
        own, shared[str(number)] = split_shared(variant, variant.learning_rates(constants))
        for name, rate in shared[str(number)].items():
            if jnp.ndim(rate):
                raise ValueError(
                    f"the learning rate of '{name}', which matrices share, must be one number, and "
                    f"has the shape {jnp.shape(rate)}"
                )
        rates |= own
    some = rates or any(shared.values())
    scaling = scale_updates(rates, shared) if some else optax.identity()
    if isinstance(tx, ForWeights):
        return tx.make(axes_of_matrices(frozen), scaling)
    return optax.chain(tx, scaling) if some else tx


def scale_updates(rates: Rates, shared: Rates = MappingProxyType({})) -> GradientTransformation:
    """Multiply the updates of the factors named in `rates`, {path: {name: ratio}}.

    Args:
      shared: the same for arrays that a variant's matrices share, by the variant's number.
    """

    def scale(mine: Mapping[str, Any], factors: dict[str, Array]) -> dict[str, Array]:
        return {n: u * _expand(mine[n], u) if n in mine else u for n, u in factors.items()}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        parts = {"adapters": rates, "shared": shared}
        scaled = {
            part: {where: scale(each.get(where, {}), x) for where, x in updates[part].items()}
            for part, each in parts.items()
            if part in updates
        }
        return {**updates, **scaled}, state

    return GradientTransformation(lambda params: optax.EmptyState(), update)


def _expand(rate: Any, update: Array) -> Array:
    """Reshape a rate (one for each matrix of a stack) so that it can multiply an update."""
    rate = jnp.asarray(rate, update.dtype)
    return rate.reshape(rate.shape + (1,) * (update.ndim - rate.ndim))
