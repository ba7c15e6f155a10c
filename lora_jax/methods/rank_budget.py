"""A budget of ranks: its schedule, which rows are kept, and the factors of those rows."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.methods.checks import MOST
from lora_jax.methods.lowrank import LowRank
from lora_jax.peft_format import quoted
from lora_jax.variant import Factors, Pruned

PyTree = Any
BUDGET = "budget"
"""The constant with the number of rows to keep after 0 ... total_steps steps."""
MOST_STEPS = 1_000_000
"""The most steps of a schedule, which stores a number for each step."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A mean rank that falls cubically from `rank` to `target_rank` (Zhu and Gupta 2017)."""

    rank: int
    target_rank: int
    total_steps: int
    t_init: int | None
    """How many steps come before the rank falls; a tenth of all by default."""
    t_final: int | None
    """How many steps come after it has fallen; half of all by default."""
    delta_t: int
    """Rows are chosen every `delta_t` steps."""

    def validate(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            least = 0 if name in ("t_init", "t_final") else 1
            default = least == 0 and value is None
            if not default and (not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
            if isinstance(value, int) and value > MOST:
                raise ValueError(f"{name} must be at most {MOST:,}, got {quoted(value)}")
        if self.total_steps > MOST_STEPS:
            raise ValueError(
                f"total_steps must be at most {MOST_STEPS:,}, got {self.total_steps:,}"
            )
        if self.target_rank > self.rank:
            raise ValueError(f"target_rank {self.target_rank} exceeds rank {self.rank}")
        if self.start >= self.fixed:
            phases = f"t_init + t_final = {self.start} + {self.total_steps - self.fixed}"
            raise ValueError(f"{phases} must be below total_steps = {self.total_steps}")

    @property
    def start(self) -> int:
        """The last step before the rank falls."""
        return self.total_steps // 10 if self.t_init is None else self.t_init

    @property
    def fixed(self) -> int:
        """The step at which the rank has reached `target_rank`."""
        final = self.total_steps // 2 if self.t_final is None else self.t_final
        return self.total_steps - final

    def arrays(self, matrices: int, integer: Callable[[float], int]) -> dict[str, Array]:
        """The schedule as arrays, for code that is traced.

        Returns:
          What `phase` reads: `budget`, how many rows of all matrices to keep after 0 ...
          total_steps steps; `start` and `fixed`, the steps between which it falls; `delta_t`.

        Raises:
          ValueError: all matrices have more rows than a budget can count.
        """
        first, last = matrices * self.rank, matrices * self.target_rank
        if first > MOST:
            raise ValueError(
                f"rank={self.rank} ({matrices} matrices) is a budget of {first:,} rows, more than "
                f"{MOST:,}"
            )
        falling = self.fixed - self.start
        passed = [min(max(t - self.start, 0), falling) for t in range(self.total_steps + 1)]
        budget = [integer((first - last) * (1 - t / falling) ** 3 + last) for t in passed]
        steps = {"start": self.start, "fixed": self.fixed, "delta_t": self.delta_t}
        numbers = steps | {BUDGET: budget}
        return {name: jnp.asarray(value, jnp.int32) for name, value in numbers.items()}


def phase(arrays: Mapping[str, Array], step: Array) -> tuple[Array, Array, Array]:
    """The phase of the schedule that a step, counted from 0, is in.

    Returns:
      Whether rows still compete, whether rows are chosen after this step, and how many are kept.
    """
    t, budget = jnp.asarray(step + 1, jnp.int32), arrays[BUDGET]
    competing = t < arrays["fixed"]
    due = competing & (t > arrays["start"]) & (t % arrays["delta_t"] == 0)
    return competing, due | (t == arrays["fixed"]), budget[jnp.minimum(t, budget.size - 1)]


def sensitivity(
    old: dict[str, PyTree], weights: PyTree, grads: PyTree, beta1: Array, beta2: Array
) -> dict[str, PyTree]:
    """How much removing each weight would change the loss, smoothed, and how uncertain that is.

    Zhang et al. 2022, "PLATON", arXiv 2206.12562: the running means of |w g|, and of its distance
    from that mean (AdaLoRA's equations 8 to 10); their product is a weight's score.

    Args:
      old: the last `importance` and `uncertainty`, trees like the weights', zero at first.
    """

    def smooth(beta: Array, old: PyTree, new: PyTree) -> PyTree:
        def one(x: Array, y: Array) -> Array:
            b = beta.astype(x.dtype)
            return b * x + (1 - b) * y

        return jax.tree.map(one, old, new)

    now = jax.tree.map(lambda w, g: jnp.abs(w * g), weights, dict(grads))
    importance = smooth(beta1, old["importance"], now)
    distance = jax.tree.map(lambda x, mean: jnp.abs(x - mean), now, importance)
    uncertainty = smooth(beta2, old["uncertainty"], distance)
    return {"importance": importance, "uncertainty": uncertainty}


def best(scores: Mapping[str, Array], count: Array) -> dict[str, Array]:
    """Masks of the `count` highest of all scores; of equal scores, the first in order count."""
    widest = max((each.dtype for each in scores.values()), key=lambda d: jnp.finfo(d).bits)
    flat = jnp.concatenate([each.ravel().astype(widest) for each in scores.values()])
    places = jnp.argsort(jnp.argsort(-flat, stable=True))
    ends = np.cumsum([each.size for each in scores.values()])
    chosen = jnp.split(places < count.astype(places.dtype), ends[:-1])
    return {p: c.reshape(s.shape) for (p, s), c in zip(scores.items(), chosen, strict=True)}


def keep_rows(variant: LowRank, factors: Factors, used: np.ndarray) -> Pruned | None:
    """Plain low-rank factors of the used rows of one weight, or of its whole stack.

    Args:
      variant: gives the scale, dropout and learning-rate ratio to continue with.
      factors: `a` and `b`, whose effect is `scale * a^T b`.
      used: (..., rank) booleans.

    Returns:
      Factors of the highest rank in the stack; for matrices of lower rank, a constant `mask` hides
      the other rows. None if no row is used.
    """
    counts = used.sum(-1)
    rows = int(counts.max())
    if not rows:
        return None
    order = np.argsort(~used, axis=-1, kind="stable")[..., :rows]
    real = np.arange(rows) < counts[..., None]

    known = ("scale", "keep", "ratio", "active")
    constants = {name: x for name, x in factors.constants.items() if name in known}
    if not real.all():
        constants["mask"] = jnp.asarray(real, constants["scale"].dtype)
    smaller = LowRank(
        rank=rows,
        alpha=variant.scaling() * rows,
        dropout=variant.dropout,
        learning_rate_ratio=variant.learning_rate_ratio,
        max_rank=None if real.all() else rows,
    )
    both = {name: factors.trainable[name] for name in ("a", "b")}
    trainable = _rows(both, order, real)
    return Pruned(smaller, Factors(trainable, constants), tuple(counts.ravel().tolist()))


@jax.jit
def _rows(factors: dict[str, Array], order: Array, real: Array) -> dict[str, Array]:
    """The rows of each array in the given order; rows that are not real become zeros."""

    def rows(x: Array) -> Array:
        taken = jnp.take_along_axis(x, order[..., None], axis=-2)
        return jnp.where(real[..., None], taken, 0)

    return jax.tree.map(rows, factors)
