"""RandLoRA: a full-rank update from frozen random matrices, of which only scales are trained.

Albert et al. 2025, "RandLoRA: Full-rank parameter-efficient fine-tuning of large models", arXiv
2502.00987. For W of shape (in, out), used as x @ W, with in <= out,

    W' = W + s sum_i (diag(lambda_i) A diag(gamma_i))^T B_i,    s = alpha / rank,

with A (rank, in) and each B_i (rank, out) random, frozen and shared by all matrices, and as many
terms as it takes to reach full rank. Where out < in, A is on the side of the outputs.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.methods.checks import require_dropout, require_finite, require_rank
from lora_jax.methods.products import add, dropout, dropout_constants, product
from lora_jax.peft_format import Config, Layouts, Peft, loaded, same, transposed
from lora_jax.variant import Base, Factors, Variant, wide

TERMS = "in PEFT, RandLoRA's B_i are others for matrices with another number of terms"


@dataclasses.dataclass(frozen=True)
class RandLoRA(Variant):
    """`lambda` (terms, rank) and `gamma` (terms, min(in, out)), terms = ceil(min(in, out) / rank).

    Differences from plain LoRA: A and B are not trained, and a lower rank means more terms, hence
    more numbers; the rank of the update is that of W in any case. lambda starts at zero. A product
    costs that of W's own size twice, and its factors are as large as W: of the dense matrices, only
    the update itself is not formed.

    Equal to PEFT's RandLoRA for the same A and B, dropout included. PEFT pairs row k of term i with
    column k * terms + i of B, in the order of (term, row), which is another order of the random
    B_i. Its sparse and ternary A and B are not here.
    """

    peft: ClassVar[str] = "RandLoraConfig"
    peft_layouts: ClassVar[Layouts] = {
        "lambda": transposed("randlora_lambda"),
        "gamma": same("randlora_gamma"),
    }
    peft_config: ClassVar[Config] = Config(
        "RANDLORA",
        {
            **{"r": ("rank", 32), "randlora_alpha": ("alpha", 640.0)},
            **{"randlora_dropout": ("dropout", 0.0)},
        },
        {
            "projection_prng_key": 0,
            "save_projection": True,
            "fan_in_fan_out": False,
            "bias": "none",
        },
    )
    remade: ClassVar[tuple[str, ...]] = ("random_a", "random_b")

    rank: int = 32
    """The rows of A and of each B_i; a lower rank means more terms."""
    alpha: float = 640.0
    """The scale s is alpha / rank."""
    dropout: float = 0.0
    """Probability of dropping an entry of the adapter's input while a `dropout_key` is given."""

    def __post_init__(self) -> None:
        require_rank(self.rank)
        require_finite("alpha", self.alpha)
        require_dropout(self.dropout)

    def init_shared(
        self, key: Array, shapes: Sequence[tuple[int, int]], dtype: Any
    ) -> dict[str, Array]:
        one, two = jax.random.split(key)
        short, long = max(map(min, shapes)), max(map(max, shapes))
        bound = math.sqrt(3)  # a variance of one
        a = jax.random.uniform(one, (self.rank, short), dtype, -bound, bound)
        terms = self._terms((short, long))
        b = jax.random.uniform(two, (terms, self.rank, long), dtype, -bound, bound)
        return {"random_a": a, "random_b": b, "init_key": jax.random.key_data(key)}

    def init(self, key: Array, base: Base) -> Factors:
        dtype, terms, short = wide(base.dtype), self._terms(base.shape), min(base.shape)
        constants = {"scale": jnp.asarray(self.alpha / self.rank, dtype)}
        constants |= dropout_constants(self.dropout, dtype)
        gamma = jnp.full((terms, short), 1 / max(terms, short), dtype)
        return Factors({"lambda": jnp.zeros((terms, self.rank), dtype), "gamma": gamma}, constants)

    def weight(self, base: Base, factors: Factors) -> Array:
        a, b = self._factors(base, factors, factors.trainable["gamma"].dtype)
        return base.dense().astype(a.dtype) + a.T @ b

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        a, b = self._factors(base, factors, x.dtype)
        y = product(dropout(x, factors, dropout_key), a, b, base.accumulate)
        return add(base.dot(x), y)

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        a, b = self._factors(base, factors, base.dtype)
        hidden = jnp.moveaxis(jnp.take(a, rows, axis=1, mode="clip"), 0, -1)
        return base.take(rows) + hidden @ b

    def factors_from_peft(self, base: Base, peft: Peft, begun: Factors) -> Factors:
        if self._terms(base.shape) != len(begun.constants["random_b"]):
            raise ValueError(TERMS)
        copies = ("randlora_A", "randlora_B")  # which PEFT writes for each module, too
        own = {name: x for name, x in peft.tensors.items() if name not in copies}
        return begun._replace(trainable=loaded(self.peft_layouts, own))

    def shared_to_peft(self, shared: dict[str, Array], shapes: Sequence[tuple[int, int]]) -> dict:
        """A and B as large as PEFT has them; what no matrix uses is zero."""
        numbers = {self._terms(shape) for shape in shapes}
        if len(numbers) > 1:
            raise ValueError(TERMS)
        (terms,), sides = numbers, [max(sizes) for sizes in zip(*shapes, strict=True)]
        a, b = shared["random_a"], shared["random_b"][:terms]
        columns = b.transpose(2, 1, 0).reshape(b.shape[2], terms, self.rank)
        whole = np.zeros((self.rank, 1, min(sides)), a.dtype)
        whole[:, 0, : a.shape[1]] = a
        every = np.zeros((max(sides), self._terms((min(sides), max(sides))), self.rank), b.dtype)
        every[: len(columns), :terms] = columns
        return {"randlora_A": whole, "randlora_B": every}

    def shared_from_peft(self, peft: Peft, begun: dict[str, Array]) -> dict[str, Array]:
        if not {"randlora_A", "randlora_B"} <= peft.shared.keys():
            raise ValueError("RANDLORA was saved without its matrices, which torch alone can draw")
        a, b = peft.shared["randlora_A"], peft.shared["randlora_B"]
        terms, rank, long = begun["random_b"].shape
        # Column k * terms + i is of row k in term i.
        rows = b[:long, :terms].reshape(long, rank, terms).transpose(2, 1, 0)
        return {**begun, "random_a": a[:, 0, : begun["random_a"].shape[1]], "random_b": rows}

    def count(self, shape: tuple[int, int]) -> int:
        return self._terms(shape) * (self.rank + min(shape))

    def _terms(self, shape: tuple[int, int]) -> int:
        """min(in, out) / rank, rounded up."""
        return -(-min(shape) // self.rank)

    def _factors(self, base: Base, factors: Factors, dtype: Any) -> tuple[Array, Array]:
        """All terms in two factors, (terms rank, in) and (terms rank, out)."""
        scales, gamma = factors.trainable["lambda"], factors.trainable["gamma"]
        (terms, short), long = gamma.shape, max(base.shape)
        a = factors.constants["random_a"][:, :short].astype(gamma.dtype)
        b = factors.constants["random_b"][:terms, :, :long].astype(dtype).reshape(-1, long)
        a = (scales[:, :, None] * a[None]) * gamma[:, None, :]
        a = (factors.constants["scale"] * a).astype(dtype).reshape(-1, short)
        return (a, b) if base.shape[0] == short else (b, a)
