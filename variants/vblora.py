"""VB-LoRA: A and B are made of mixtures of vectors from one trained bank that all matrices share.

Li et al. 2024, "VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks", arXiv
2405.15179. For W of shape (in, out), used as x @ W, every row of A (rank, in) and of B (rank, out)
is cut into sub-vectors of one length. Each is a mixture of the k vectors of the bank whose logits
s are the largest, of n that there are:

    W' = W + A^T B,    u = sum_i softmax(s_i) bank_i,    i among the k largest of s_1 ... s_n.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from lora_jax.methods.checks import require_count, require_dropout, require_ratio
from lora_jax.methods.products import (
    add,
    dropout,
    dropout_constants,
    product,
    ratio_constants,
)
from lora_jax.peft_format import Config, Layout, Layouts, Peft, same
from lora_jax.variant import Base, Factors, Suggested, Variant, wide

BANK = "vblora_vector_bank"
"""PEFT's name for the bank."""


def _ranks_first(logits: Array) -> Array:
    """Ours from PEFT's, whose sub-vectors come first; and PEFT's from ours."""
    return logits.swapaxes(0, 1)


@dataclasses.dataclass(frozen=True)
class VBLoRA(Variant):
    """A shared `bank` (num_vectors, length); logits `a` and `b` (rank, sub-vectors, num_vectors).

    Differences from plain LoRA: A and B are drawn, neither is zero, and there is no scale. The
    gradient reaches the chosen logits alone; the choice may change at every step. Only k places and
    weights of each sub-vector need be kept after training; files have all logits, to go on.

    Equal to PEFT's, which is an author's own (pull request 2039), start and dropout included. PEFT
    adapts no embeddings, and no matrix whose sides `vector_length` does not divide; such a matrix
    takes the first entries of the bank's vectors here.
    """

    title: ClassVar[str] = "VB-LoRA"
    peft: ClassVar[str] = "VBLoRAConfig"
    suggested: ClassVar[Suggested] = Suggested(settings={"learning_rate_ratio": 10.0})
    peft_layouts: ClassVar[Layouts] = {
        "a": same("vblora_logits_A", "all"),
        "b": Layout("vblora_logits_B", _ranks_first, _ranks_first, 0),
    }
    peft_config: ClassVar[Config] = Config(
        "VBLORA",
        {
            **{"r": ("rank", 4), "num_vectors": ("num_vectors", 256), "topk": ("topk", 2)},
            **{"vector_length": ("vector_length", 256), "vblora_dropout": ("dropout", 0.0)},
        },
        {"save_only_topk_weights": False, "fan_in_fan_out": False, "bias": "none"},
        {"init_vector_bank_bound": 0.02, "init_logits_std": 0.1},
    )
    shared_trainable: ClassVar[tuple[str, ...]] = ("bank",)

    rank: int = 4
    """The rows of A and of B."""
    num_vectors: int = 256
    """How many vectors the bank has."""
    vector_length: int = 256
    """The most entries of a sub-vector: the largest common divisor of in and out up to it."""
    topk: int = 2
    """How many vectors of the bank each sub-vector mixes."""
    dropout: float = 0.0
    """Probability of dropping an entry of the adapter's input while a `dropout_key` is given."""
    learning_rate_ratio: float = 1.0
    """How many times faster logits learn than the bank: 10 times in the paper."""

    def __post_init__(self) -> None:
        for name in ("rank", "num_vectors", "vector_length", "topk"):
            require_count(name, getattr(self, name))
        if self.topk > self.num_vectors:
            raise ValueError(f"topk {self.topk} exceeds num_vectors {self.num_vectors}")
        require_dropout(self.dropout)
        require_ratio(self.learning_rate_ratio)

    @property
    def differs_at_init(self) -> str:
        return "its bank and logits are drawn"

    def validate(self, shape: tuple[int, int]) -> None:
        if self._length(shape) == 1 < self.vector_length:
            raise ValueError(
                f"no length of 2 to {self.vector_length} divides both sides of {shape}"
            )

    def init_shared(
        self, key: Array, shapes: Sequence[tuple[int, int]], dtype: Any
    ) -> dict[str, Array]:
        size = self.num_vectors, max(map(self._length, shapes))
        return {"bank": jax.random.uniform(key, size, dtype, -0.02, 0.02)}

    def init(self, key: Array, base: Base) -> Factors:
        dtype, logits = wide(base.dtype), {}
        constants = dropout_constants(self.dropout, dtype)
        constants |= ratio_constants(self.learning_rate_ratio, dtype)
        for name, own, side in zip("ab", jax.random.split(key), base.shape, strict=True):
            size = self.rank, side // self._length(base.shape), self.num_vectors
            logits[name] = 0.1 * jax.random.normal(own, size, dtype)
        return Factors(logits, constants)

    def as_lora(self, base: Base, factors: Factors) -> tuple[Array, Array]:
        bank = factors.trainable["bank"][:, : self._length(base.shape)]

        def mixed(logits: Array) -> Array:
            largest, places = lax.top_k(logits, self.topk)
            chosen = jnp.take(bank.astype(logits.dtype), places, axis=0, mode="clip")
            return jnp.einsum("rsk,rskl->rsl", jax.nn.softmax(largest), chosen)

        a, b = (mixed(factors.trainable[name]).reshape(self.rank, -1) for name in "ab")
        return a, b

    def weight(self, base: Base, factors: Factors) -> Array:
        a, b = self.as_lora(base, factors)
        return base.dense().astype(a.dtype) + a.T @ b

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        a, b = (each.astype(x.dtype) for each in self.as_lora(base, factors))
        return add(base.dot(x), product(dropout(x, factors, dropout_key), a, b, base.accumulate))

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        a, b = (each.astype(base.dtype) for each in self.as_lora(base, factors))
        return base.take(rows) + jnp.moveaxis(jnp.take(a, rows, axis=1, mode="clip"), 0, -1) @ b

    def to_peft(self, base: Base, factors: Factors, lookup: bool = False) -> Peft | None:
        if self._length(base.shape) != factors.trainable["bank"].shape[1]:
            return None
        return super().to_peft(base, factors, lookup)

    def peft_settings(self, base: Base, factors: Factors) -> dict[str, Any]:
        length = factors.trainable["bank"].shape[1]
        return super().peft_settings(base, factors) | {"vector_length": length}

    def shared_to_peft(self, shared: dict[str, Array], shapes: Sequence[tuple[int, int]]) -> dict:
        return {BANK: shared["bank"]}

    def shared_from_peft(self, peft: Peft, begun: dict[str, Array]) -> dict[str, Array]:
        if BANK not in peft.shared:
            raise ValueError(f"VBLORA was saved without its {BANK}")
        return {**begun, "bank": peft.shared[BANK]}

    def count(self, shape: tuple[int, int]) -> int:
        return self.rank * sum(shape) // self._length(shape) * self.num_vectors

    def learning_rates(
        self, constants: Mapping[str, dict[str, Array]]
    ) -> dict[str, dict[str, Array]]:
        ratios = {path: each["ratio"] for path, each in constants.items() if "ratio" in each}
        return {path: dict.fromkeys("ab", ratio) for path, ratio in ratios.items()}

    def _length(self, shape: tuple[int, int]) -> int:
        """The largest common divisor of in and out that is at most `vector_length`."""
        common = math.gcd(*shape)
        return max(n for n in range(1, min(common, self.vector_length) + 1) if common % n == 0)
