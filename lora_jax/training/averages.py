"""Averages of the weights over training, which are evaluated and saved in their place.

An exponential moving average starts at zero, and is divided by the sum of its weights, as Adam's
moments are (Kingma and Ba 2015, arXiv 1412.6980, section 3). After n steps with the decay d it is
sum_k d^(n-k) w_k / sum_k d^(n-k), where w_k are the weights after step k. The weights before the
first step do not count. After one step the average is w_1.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array
from optax import contrib as optax_contrib

from lora_jax.base import wide
from lora_jax.transform.adapted_optimizer import MasterState, at_masters
from lora_jax.transform.placement import Trainable

if TYPE_CHECKING:
    from lora_jax.training.step import TrainState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Average:
    """An exponential moving average of trainables."""

    sums: Trainable
    """The weighted sums, in float32 at least."""
    weight: Array
    """The sum of all weights in `sums`."""

    @classmethod
    def zero(cls, trainable: Trainable) -> "Average":
        """The average of nothing yet."""
        sums = jax.tree.map(lambda x: jnp.zeros_like(x, wide(x.dtype)), trainable)
        return cls(sums, jnp.zeros(()))

    def add(self, trainable: Trainable, decay: Array | float) -> "Average":
        """The average with the trainables after a further step."""

        def mean(old: Array, new: Array) -> Array:
            share = jnp.asarray(decay, old.dtype)
            return share * old + (1 - share) * new.astype(old.dtype)

        one = jnp.ones_like(self.weight)
        return Average(jax.tree.map(mean, self.sums, trainable), mean(self.weight, one))

    def value(self, trainable: Trainable) -> Trainable:
        """The average in the dtypes of `trainable`, which it is itself before the first step."""

        def divided(total: Array, now: Array) -> Array:
            weight = self.weight.astype(total.dtype)
            mean = total / jnp.where(weight > 0, weight, jnp.ones_like(weight))
            return jnp.where(weight > 0, mean, now.astype(total.dtype)).astype(now.dtype)

        return jax.tree.map(divided, self.sums, trainable)


def eval_params(state: "TrainState") -> Trainable:
    """The trainables to evaluate and to save: an average if the state has one."""
    if state.average is not None:
        return _value(state.average, state.trainable)
    inner = state.opt_state.inner if isinstance(state.opt_state, MasterState) else state.opt_state
    if isinstance(inner, optax_contrib.ScheduleFreeState):
        return _schedule_free(state.opt_state, state.trainable)
    return state.trainable


@jax.jit
def _value(average: Average, trainable: Trainable) -> Trainable:
    return average.value(trainable)


@jax.jit
def _schedule_free(opt_state: Any, trainable: Trainable) -> Trainable:
    exact = trainable
    if isinstance(opt_state, MasterState):
        opt_state, exact = opt_state.inner, at_masters(opt_state, trainable)
    found = optax_contrib.schedule_free_eval_params(opt_state, exact)
    return jax.tree.map(lambda x, now: x.astype(now.dtype), found, trainable)
