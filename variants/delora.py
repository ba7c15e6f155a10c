"""DeLoRA: each rank-one part of the update has its length fixed, and one strength is trained.

Bini et al. 2025, "Decoupling Angles and Strength in Low-rank Adaptation", arXiv 2503.18225. For W
of shape (in, out), used as x @ W, with n the norms of W's rows (one for each input),

    W' = W + diag(n) A^T Xi B,    Xi = (lambda / rank) diag(1 / (||a_k|| ||b_k||)).
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.methods.checks import require_dropout, require_nonzero, require_rank
from lora_jax.methods.lowrank import LowRankUpdate
from lora_jax.methods.products import dropout_constants
from lora_jax.peft_format import Config, Layouts, Peft, loaded, same, transposed
from lora_jax.variant import Base, Factors, wide

LEAST = 1e-4
"""The least norm to divide by, as in the authors' code."""


@dataclasses.dataclass(frozen=True)
class DeLoRA(LowRankUpdate):
    """A (rank, in), B (rank, out) and `lambda` (1,) are trained; n is a constant, taken from W.

    Differences from plain LoRA: rows a_k and b_k give directions alone, and lambda bounds the
    update. B starts at zero, where the norm counts as 1e-4. No dense matrix is formed.

    Equal to PEFT's DeLoRA, which is the authors', dropout included (`module_dropout` there). The
    equation of the paper has one norm of W, their code one for each input, as here. The paper also
    describes a start with drawn A and B whose effect is subtracted, which is not here.
    """

    peft: ClassVar[str] = "DeloraConfig"
    peft_layouts: ClassVar[Layouts] = {
        "a": same("delora_A"),
        "b": transposed("delora_B"),
        "lambda": same("delora_lambda"),
        "norms": same("delora_w_norm"),
    }
    peft_config: ClassVar[Config] = Config(
        "DELORA",
        {
            **{"r": ("rank", 8), "delora_lambda": ("strength", 15.0)},
            **{"module_dropout": ("dropout", 0.0)},
        },
        {"rank_pattern": {}, "lambda_pattern": {}},
    )

    rank: int = 8
    """The rows of A and of B."""
    strength: float = 4.0
    """Where lambda starts: 4 in the authors' GLUE runs; PEFT's default is 15."""
    dropout: float = 0.0
    """Probability of dropping an entry of the adapter's input while a `dropout_key` is given."""

    def __post_init__(self) -> None:
        require_rank(self.rank)
        require_nonzero("strength", self.strength)
        require_dropout(self.dropout)

    def init(self, key: Array, base: Base) -> Factors:
        dtype, (inputs, outputs) = wide(base.dtype), base.shape
        a = jax.random.uniform(key, (self.rank, inputs), dtype, -(inputs**-0.5), inputs**-0.5)
        b, strength = jnp.zeros((self.rank, outputs), dtype), jnp.full(1, self.strength, dtype)
        norms = jnp.sqrt(jnp.square(base.dense().astype(dtype)).sum(axis=1))
        constants = {"norms": norms} | dropout_constants(self.dropout, dtype)
        return Factors({"a": a, "b": b, "lambda": strength}, constants)

    def low_rank_factors(self, factors: Factors, dtype: Any) -> tuple[Array, Array]:
        a, b, strength = (factors.trainable[name] for name in ("a", "b", "lambda"))
        xi = strength / self.rank / (_norms(a) * _norms(b))
        a = a * factors.constants["norms"][None, :]
        return a.astype(dtype), (xi[:, None] * b).astype(dtype)

    def factors_from_peft(self, base: Base, peft: Peft, begun: Factors) -> Factors:
        found = loaded(self.peft_layouts, peft.tensors)
        norms = found.pop("norms", begun.constants["norms"])
        return Factors(found, {**begun.constants, "norms": norms})

    def count(self, shape: tuple[int, int]) -> int:
        return self.rank * sum(shape) + 1


def _norms(rows: Array) -> Array:
    """The norm of each row, at least `LEAST`; of shorter rows, without a gradient."""
    return jnp.sqrt(jnp.maximum(jnp.square(rows).sum(axis=1), LEAST**2))
