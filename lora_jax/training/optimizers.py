"""Optimisers by name: how each steps, and which numbers it reads.

All of them add decoupled weight decay to what they make of the gradients, and multiply both by the
learning rate; biases and norms do not decay (`optim.decays`). The gradients come clipped.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from optax import GradientTransformation, contrib as optax_contrib

from lora_jax.training import optim
from lora_jax.transform.adapted_optimizer import AxesOf, ForWeights

Numbers = Mapping[str, Any]
"""The numbers of an optimiser by name; each may be traced."""
Optimizer = GradientTransformation | ForWeights

RMS_OF_MUON = 0.2
"""Muon's updates have this root mean square, as AdamW's: one learning rate serves both."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of optimiser."""

    title: str
    """What texts call it."""
    make: Callable[[optax.Schedule, Numbers], Optimizer]
    """Makes it from the learning rate by step and its numbers, `weight_decay` among them."""
    reads: tuple[str, ...] = ()
    """The numbers that it reads besides `weight_decay`."""
    momentum: float | None = None
    """Its `momentum` unless one is given; None if it reads none."""
    averages: bool = False
    """Whether the weights to evaluate are averages that its state holds (see `averages`)."""
    elementwise: bool = True
    """Whether each number is stepped by itself. If not, factors with padded rows step otherwise."""


def _adamw(rate: optax.Schedule, numbers: Numbers) -> Optimizer:
    return optim.adamw(rate, clip=None, **numbers)


def _stepping(
    direction: GradientTransformation, rate: optax.Schedule, numbers: Numbers
) -> GradientTransformation:
    """Down a direction and the decay's, at a learning rate."""
    decay = optax.add_decayed_weights(numbers["weight_decay"], mask=optim.decays)
    return optax.chain(direction, decay, optax.scale_by_learning_rate(rate))


def _sgd(rate: optax.Schedule, numbers: Numbers) -> Optimizer:
    return _stepping(optax.trace(numbers["momentum"]), rate, numbers)


def _lion(rate: optax.Schedule, numbers: Numbers) -> Optimizer:
    """Chen et al. 2023, arXiv 2302.06675: `momentum` is the paper's beta_2."""
    direction = optax.scale_by_lion(b1=numbers["b1"], b2=numbers["momentum"])
    return _stepping(direction, rate, numbers)


def adafactor(
    rate: optax.Schedule, numbers: Numbers, smallest: int = 128
) -> GradientTransformation:
    """Adafactor (Shazeer and Stern 2018, arXiv 1804.04235) at a learning rate that is given.

    Differences from the paper: the rate is not multiplied by the size of the weights, as adapters
    start at zero; there is no momentum.

    Args:
      smallest: moments are factored where the two largest axes have at least this size.
    """
    moments = optax.scale_by_factored_rms(min_dim_size_to_factor=smallest)
    return _stepping(optax.chain(moments, optax.clip_by_block_rms(1.0)), rate, numbers)


def _muon(rate: optax.Schedule, numbers: Numbers) -> Optimizer:
    return ForWeights(lambda axes, rates: optax.chain(muon(rate, numbers, axes), rates))


def muon(rate: optax.Schedule, numbers: Numbers, axes: AxesOf) -> GradientTransformation:
    """Muon for matrices (Jordan 2024; Liu et al. 2025, arXiv 2502.16982), AdamW for all else.

    Five Newton-Schulz iterations on Nesterov momentum; every matrix of a stack by itself.
    """

    def dimensions(trainable: Any) -> Any:
        def of_leaf(keys: Any, leaf: Any) -> Any:
            found = axes(keys, leaf)
            return found and optax_contrib.MuonDimensionNumbers(found.inputs, found.outputs)

        return jax.tree_util.tree_map_with_path(of_leaf, trainable)

    def labels(trainable: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda keys, leaf: "muon" if axes(keys, leaf) else "adam", trainable
        )

    def at_equal_rms(updates: Any, _: Any) -> Any:
        def scale(keys: Any, leaf: Any) -> Any:
            found = axes(keys, leaf)
            assert found is not None, "only matrices come here"
            sides = [math.prod(leaf.shape[axis] for axis in each) for each in found]
            return leaf * (RMS_OF_MUON * math.sqrt(max(sides)))

        return jax.tree_util.tree_map_with_path(scale, updates)

    orthogonal = optax.chain(
        optax_contrib.scale_by_muon(
            beta=numbers["momentum"], eps=numbers["eps"], weight_dimension_numbers=dimensions
        ),
        optax.stateless(at_equal_rms),
    )
    adam = optax.scale_by_adam(b1=numbers["b1"], b2=numbers["b2"], eps=numbers["eps"])
    return _stepping(optax.partition({"muon": orthogonal, "adam": adam}, labels), rate, numbers)


def _schedule_free(rate: optax.Schedule, numbers: Numbers) -> Optimizer:
    return ForWeights(lambda axes, rates: schedule_free(rate, numbers, rates))


def schedule_free(
    rate: optax.Schedule, numbers: Numbers, rates: GradientTransformation | None = None
) -> GradientTransformation:
    """Schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682).

    Args:
      rate: a warm-up, and constant after it.
      rates: what multiplies the steps that are averaged, such as learning rates of factors.
    """
    rms = optax.scale_by_rms(
        decay=numbers["b2"], eps=numbers["eps"], eps_in_sqrt=False, bias_correction=True
    )
    steps = optax.chain(_stepping(rms, rate, numbers), rates or optax.identity())
    # optax counts from 1 here, and from 0 in the steps that it averages.
    return optax_contrib.schedule_free(steps, lambda count: rate(count - 1), b1=numbers["b1"])


KINDS: Mapping[str, Kind] = {
    "adamw": Kind("AdamW", _adamw, ("b1", "b2", "eps")),
    "sgd": Kind("SGD with momentum", _sgd, ("momentum",), momentum=0.9),
    "lion": Kind("Lion", _lion, ("b1", "momentum"), momentum=0.99),
    "adafactor": Kind("Adafactor", adafactor, elementwise=False),
    "muon": Kind("Muon", _muon, ("b1", "b2", "eps", "momentum"), momentum=0.95, elementwise=False),
    "schedule_free": Kind(
        "schedule-free AdamW", _schedule_free, ("b1", "b2", "eps"), averages=True
    ),
}


OF_SOME = frozenset(name for kind in KINDS.values() for name in kind.reads)
"""The numbers that some optimisers read, and others do not."""


def scaled(tx: Optimizer, scaling: GradientTransformation) -> Optimizer:
    """An optimiser whose steps are multiplied by `scaling`, before it averages them."""
    if not isinstance(tx, ForWeights):
        return optax.chain(tx, scaling)
    return ForWeights(lambda axes, rates: tx.make(axes, optax.chain(scaling, rates)))
