"""A training step of LoRA as one writes it by hand, in the same model.

The layers that are adapted compute `x @ W + b + s (x @ A) @ B`; autodiff, Optax's AdamW and its
clipping do the rest. Nothing of `lora_jax` but the model takes part.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from benchmarks import models
from benchmarks.cases import ALPHA, Case
from benchmarks.contenders.made import Made, compilation, stepping
from lora_jax.models.parts.modules import Linear


class Factor(nnx.Param):
    """A factor of a low-rank product."""


class LowRankLinear(Linear):
    """A linear layer, alone or stacked, with a low-rank product beside it."""

    def __init__(self, old: Linear, rank: int, key: Array):
        # Whatever a linear layer has, but what belongs to Flax.
        vars(self).update({n: v for n, v in vars(old).items() if not n.startswith("_pytree")})
        *stack, width, out = old.kernel.shape
        dtype = jnp.float32
        self.a = Factor(jax.random.normal(key, (*stack, width, rank), dtype) * width**-0.5)
        self.b = Factor(jnp.zeros((*stack, rank, out), dtype))
        self.scale = ALPHA / rank

    def __call__(self, x: Array) -> Array:
        low = (x @ self.a[...].astype(x.dtype)) @ self.b[...].astype(x.dtype)
        return super().__call__(x) + self.scale * low


def step_work(case: Case) -> Made:
    """Training steps."""
    return stepping(*training(case), models.batch(case))


def training(case: Case) -> tuple[Any, Any, nnx.State]:
    """The jitted step of a case, and its first two arguments.

    Raises:
      ValueError: another method than LoRA in float32.
    """
    if (case.method, case.storage) != ("lora", "none"):
        raise ValueError(f"only LoRA is written by hand, not {case.method} on {case.storage}")
    model = models.load(case)
    blocks: Any = model.layers  # type: ignore[attr-defined]
    for number, name in enumerate(models.TARGETS[case.targets]):
        for home in (blocks, blocks.attention):
            if hasattr(home, name):
                key = jax.random.fold_in(jax.random.key(0), number)
                setattr(home, name, LowRankLinear(getattr(home, name), case.rank, key))
    forward, params, loss = models.forward(model, case)
    mine: Any = nnx.Any(Factor, nnx.PathContains("classifier"))
    trained, frozen = nnx.split_state(params, mine, ...)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.01))

    def objective(trained: nnx.State, frozen: nnx.State, batch: Any) -> Array:
        params = nnx.merge_state(trained, frozen)
        each = loss(forward(params, *(batch[name] for name in models.INPUTS)), batch)
        return (each * batch["weight"]).sum() / batch["weight"].sum()

    def step(state: Any, frozen: nnx.State, batch: Any) -> Any:
        trained, moments = state
        value, gradient = jax.value_and_grad(objective)(trained, frozen, batch)
        updates, moments = tx.update(gradient, moments, trained)
        return (optax.apply_updates(trained, updates), moments), {"loss": value}

    trained = jax.tree.map(jnp.copy, trained)
    return jax.jit(step, donate_argnums=0), (trained, tx.init(trained)), frozen


def compilation_work(case: Case) -> Made:
    """The tracing and compilation of a training step."""
    return compilation(case, *training(case))
