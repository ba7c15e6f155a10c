"""A user's method whose matrices share what they train, as Tied-LoRA's do (arXiv 2311.09578)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from lora_jax.variant import Factors, Variant, wide


@dataclasses.dataclass(frozen=True)
class Tied(Variant):
    """W' = W + A^T diag(d) B, with one A and one B for all matrices, cut to each."""

    shared_trainable: ClassVar[tuple[str, ...]] = ("a", "b")

    rank: int = 2
    learning_rate_ratio: float = 1.0

    def init_shared(self, key, shapes, dtype):
        inputs, outputs = (max(sizes) for sizes in zip(*shapes, strict=True))
        a, b = jax.random.normal(key, (self.rank, inputs), dtype), jnp.zeros((self.rank, outputs))
        ratio = jnp.asarray(self.learning_rate_ratio, dtype)
        return {"a": a, "b": b.astype(dtype), "ratio": ratio}

    def init(self, key, base):
        return Factors({"d": jnp.ones(self.rank, wide(base.dtype))}, {})

    def weight(self, base, factors):
        a, b, d = (factors.trainable[name] for name in "abd")
        inputs, outputs = base.shape
        return base.dense().astype(d.dtype) + (a[:, :inputs].T * d[None, :]) @ b[:, :outputs]

    def count(self, shape):
        return self.rank

    def learning_rates(self, constants):
        return {path: {"b": each["ratio"]} for path, each in constants.items()}
