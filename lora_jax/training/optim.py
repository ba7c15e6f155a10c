"""Optimisers: schedules, what decays, and learning rates that differ between factors."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from lora_jax.messages import require_known
from lora_jax.partition import selected

SCHEDULES = ("linear", "cosine", "constant")


def schedule(
    kind: str, learning_rate: float, steps: int, warmup_ratio: float = 0.0
) -> optax.Schedule:
    """The learning rate by step: a linear warm-up, then down to zero or constant.

    Args:
      kind: `"linear"` or `"cosine"` decay to zero at `steps`, or `"constant"`.
      warmup_ratio: the fraction of `steps` over which the rate rises from zero.
    """
    require_known(kind, SCHEDULES, f"schedule '{kind}' is unknown")
    if not 0 <= warmup_ratio < 1:
        raise ValueError(f"warmup_ratio must be in [0, 1), got {warmup_ratio}")
    return traceable_schedule(kind, learning_rate, steps, round(warmup_ratio * steps))


def traceable_schedule(
    kind: str, learning_rate: Array | float, steps: int, warmup: Array | int
) -> optax.Schedule:
    """`schedule` with a learning rate and warm-up steps that may be traced; it checks nothing."""

    def rate(count: Any) -> Array:
        count = jnp.asarray(count, jnp.result_type(float))
        # The first step already moves: (step + 1) / warmup, as a rate of zero would waste it.
        rise = (count + 1) / jnp.maximum(warmup, 1)
        part = jnp.clip((count - warmup) / jnp.maximum(steps - warmup, 1), 0, 1)
        fall = {"linear": 1 - part, "cosine": (1 + jnp.cos(jnp.pi * part)) / 2, "constant": 1.0}
        return learning_rate * jnp.where(count < warmup, rise, fall[kind])

    return rate


def adamw(
    rate: optax.ScalarOrSchedule,
    *,
    weight_decay: Array | float = 0.0,
    clip: Array | float | None = 1.0,
    b1: Array | float = 0.9,
    b2: Array | float = 0.999,
    eps: Array | float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW on clipped gradients, over trainables; biases and norms do not decay.

    Loshchilov and Hutter 2019, arXiv 1711.05101. `clip=None` leaves clipping to
    `make_train_step(..., clip=)`, as the commands do: AdaLoRA's `update` should get clipped
    gradients, and LoRA-Pro and Riemannian LoRA should be clipped before they precondition.
    """
    adam = optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decays)
    return adam if clip is None else optax.chain(optax.clip_by_global_norm(clip), adam)


def scale_params(patterns: Sequence[str], ratio: Array | float) -> optax.GradientTransformation:
    """Multiply the updates of the parameters that train in full and match a pattern (a head)."""

    def chosen(trainable: Any) -> Any:
        paths = trainable["params"]
        scaled = set().union(*(selected(pattern, paths) for pattern in patterns))
        params = {path: path in scaled for path in paths}
        return {**jax.tree.map(lambda _: False, trainable), "params": params}

    return optax.masked(optax.scale(ratio), chosen)


def decays(trainable: Any) -> Any:
    """Which trainables weight decay applies to: all but the biases and norms trained in full."""
    exempt = re.compile(
        r"(^|/)(bias|scale|norm)(/|$)"
        r"|(^|[/_])((layer|rms|group|batch)?_?norm|ln)(_\w+|\d*)(/(weight|gamma))?$"
    )
    params = {
        p: x.ndim > 1 and not exempt.search(p.lower()) for p, x in trainable["params"].items()
    }
    return {**jax.tree.map(lambda _: True, trainable), "params": params}
