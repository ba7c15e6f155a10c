"""Trainable tokens: only some rows of an embedding are trained, for example those of new words.

As PEFT's `TrainableTokensConfig`. For an embedding W of shape (vocabulary, width) and tokens S,

    W'[i, :] = V[k, :] where i = S[k],  W[i, :] elsewhere,

with V = W[S, :] at the start. A tied head, which multiplies by the transpose, gets the same rows.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.methods.products import product
from lora_jax.peft_format import Layouts, Peft, Settings, same, settings_of, stored
from lora_jax.variant import Base, Factors, Suggested, Variant, wide


@dataclasses.dataclass(frozen=True)
class TrainableTokens(Variant):
    """The rows of `tokens` are trained in full; if no tokens are named, the `last` rows are.

    Tokens below zero count from the end of the vocabulary. Differences from plain LoRA: no rank and
    no scale; rows that are not named stay as they are, bit by bit, and so do their logits. It is
    meant for embeddings (`targets="embedding"`), where each row is a token.
    """

    title: ClassVar[str] = "trainable tokens"
    peft: ClassVar[str] = "TrainableTokensConfig"
    peft_layouts: ClassVar[Layouts] = {"rows": same("trainable_tokens_delta")}
    suggested: ClassVar[Suggested] = Suggested(targets=("(word|embedding)/embedding",))

    tokens: tuple[int, ...] = ()
    """The rows that train; numbers below zero count from the end."""
    last: int = 1
    """How many of the last rows train, if `tokens` is empty."""

    def __post_init__(self) -> None:
        if not isinstance(self.tokens, Sequence) or isinstance(self.tokens, str):
            raise ValueError(f"tokens must be a list of whole numbers, got {self.tokens!r}")
        object.__setattr__(self, "tokens", tuple(self.tokens))
        for token in self.tokens:
            if isinstance(token, bool) or not isinstance(token, int):
                raise ValueError(f"tokens must be whole numbers, got {token!r}")
        if not isinstance(self.last, int) or self.last < 1:
            raise ValueError(f"last must be a whole number of at least 1, got {self.last!r}")

    def validate(self, shape: tuple[int, int]) -> None:
        size = shape[0]
        if not self.tokens and self.last > size:
            raise ValueError(f"the last {self.last} tokens, of {size} rows of {shape}")
        for token in self.tokens:
            if not -size <= token < size:
                raise ValueError(f"token {token} is none of the {size} rows of {shape}")
        if len({token % size for token in self.tokens}) < len(self.tokens):
            raise ValueError(f"tokens {self.tokens} name a row of {shape} twice")

    def init(self, key: Array, base: Base) -> Factors:
        rows = base.take(jnp.asarray(self._rows(base.shape[0])))
        return Factors({"rows": rows.astype(wide(base.dtype))}, {})

    def weight(self, base: Base, factors: Factors) -> Array:
        rows = factors.trainable["rows"]
        return base.dense().astype(rows.dtype).at[self._rows(base.shape[0])].set(rows)

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        change, chosen = self._change(base, factors)
        # A product by ones and zeros picks the inputs: a gather along them does not survive every
        # sharding.
        return base.dot(x) + product(x, chosen, change, base.accumulate)

    def dot_t(self, x: Array, base: Base, factors: Factors) -> Array:
        change, chosen = self._change(base, factors)
        return base.dot_t(x) + product(x, change, chosen, base.accumulate)

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        size, own = base.shape[0], factors.trainable["rows"].astype(base.dtype)
        place = np.full(size, -1, np.int32)
        place[self._rows(size)] = np.arange(len(own))
        where = jnp.take(jnp.asarray(place), rows, mode="clip")
        trained = jnp.take(own, where, axis=0, mode="clip")
        return jnp.where(where[..., None] < 0, base.take(rows), trained)

    def to_peft(self, base: Base, factors: Factors, lookup: bool = False) -> Peft | None:
        if not lookup:
            return None
        tokens = self._rows(base.shape[0]).tolist()
        settings = {"peft_type": "TRAINABLE_TOKENS", "token_indices": tokens}
        return Peft(settings, stored(self.peft_layouts, factors.trainable))

    @classmethod
    def from_peft(cls, config: Settings) -> "TrainableTokens | None":
        known = settings_of(config, "TRAINABLE_TOKENS", token_indices=[])
        if known is None:
            return None
        if not known["token_indices"]:
            raise ValueError("TRAINABLE_TOKENS: token_indices names no token")
        return cls(tokens=known["token_indices"])

    def count(self, shape: tuple[int, int]) -> int:
        return (len(self.tokens) or self.last) * shape[1]

    def _change(self, base: Base, factors: Factors) -> tuple[Array, Array]:
        """What is added to the rows, (tokens, out), and the rows as one-hot rows, (tokens, in)."""
        index = self._rows(base.shape[0])
        own = base.take(jnp.asarray(index)).astype(base.dtype)
        chosen = np.zeros((len(index), base.shape[0]), np.float32)
        chosen[np.arange(len(index)), index] = 1
        return factors.trainable["rows"].astype(base.dtype) - own, jnp.asarray(chosen, base.dtype)

    def _rows(self, size: int) -> np.ndarray:
        """The numbers of the rows that train."""
        chosen = self.tokens or range(size - self.last, size)
        return np.array([token % size for token in chosen], np.int32)
