"""BOFT: inputs are rotated in blocks, several times, and in other blocks each time.

Liu et al. 2023, "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization", arXiv
2311.06243. For W of shape (in, out), used as x @ W, and m butterfly factors,

    W' = B_m ... B_2 B_1 W diag(s),

where B_i rotates each of in / b blocks of b inputs: two runs of b / 2 neighbours, which lie
2^(i-1) b / 2 apart. B_1 alone is OFT's R.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.methods.checks import require_count, require_dropout
from lora_jax.methods.decompositions import side_of, turns
from lora_jax.methods.products import dropout, dropout_constants, times
from lora_jax.peft_format import (
    Layout,
    Layouts,
    Peft,
    Settings,
    quoted,
    settings_of,
    stored,
    vector,
)
from lora_jax.variant import Base, Factors, Variant, wide


def _below(matrices: Array) -> Array:
    """q of PEFT's matrices (..., b, b): minus the skew-symmetric parts, below the diagonal."""
    columns, rows = np.triu_indices(matrices.shape[-1], 1)
    return (matrices.swapaxes(-1, -2) - matrices)[..., rows, columns] / 2


def _square(q: np.ndarray) -> np.ndarray:
    """Skew-symmetric matrices of which `_below` is q."""
    size = side_of(q.shape[-1])
    columns, rows = np.triu_indices(size, 1)
    square = np.zeros((*q.shape[:-1], size, size), q.dtype)
    square[..., rows, columns], square[..., columns, rows] = -q, q
    return square


@dataclasses.dataclass(frozen=True)
class BOFT(Variant):
    """Angles `q` (m, in / b, b (b - 1) / 2) as in OFT, which start at zero, and `s` (out,), at one.

    Differences from plain LoRA: multiplicative, without rank; up to the factors s, all angles and
    lengths among the columns of W stay as they are. Together the rotations R mix 2^(m-1) b inputs
    with each other, by m in (b - 1) / 2 numbers. x is rotated and then multiplied by W, so no dense
    matrix is formed but in a lookup. With dropout, y = (x + drop(x) (R - I)) W diag(s).

    Equal to PEFT's BOFT in linear layers, where q is minus the skew-symmetric part of its `boft_R`.
    That has b^2 numbers in the place of b (b - 1) / 2, so that by plain gradient descent PEFT's q
    moves half as far. PEFT takes m = 1 where its extension for CUDA is missing; its files then
    say another m than the tensors have. It refuses a block size that does not fit, and its dropout
    sets whole blocks to I.
    """

    peft: ClassVar[str] = "BOFTConfig"
    peft_layouts: ClassVar[Layouts] = {
        "q": Layout("boft_R", _square, _below, "all"),
        "s": vector("boft_s", 0),
    }

    block_size: int = 4
    """The largest b: a matrix has blocks of the largest even divisor of in / 2^(m-1) up to it."""
    butterfly_factors: int = 2
    """m; with 1, OFT and the factors s."""
    dropout: float = 0.0
    """Probability of dropping an entry of the adapter's input while a `dropout_key` is given."""

    def __post_init__(self) -> None:
        require_count("butterfly_factors", self.butterfly_factors)
        require_dropout(self.dropout)
        require_count("block_size", self.block_size, least=2)

    def validate(self, shape: tuple[int, int]) -> None:
        factors = self.butterfly_factors
        if factors >= shape[0].bit_length() or shape[0] % 2**factors:
            raise ValueError(
                f"the {shape[0]} inputs of {shape} are not a multiple of 2**{factors}, which "
                f"{factors} butterfly factors need"
            )

    def init(self, key: Array, base: Base) -> Factors:
        dtype, (inputs, outputs), size = wide(base.dtype), base.shape, 2 * self._half(base.shape)
        constants = dropout_constants(self.dropout, dtype)
        q = jnp.zeros((self.butterfly_factors, inputs // size, size * (size - 1) // 2), dtype)
        return Factors({"q": q, "s": jnp.ones(outputs, dtype)}, constants)

    def weight(self, base: Base, factors: Factors) -> Array:
        s, each = factors.trainable["s"], self._turns(base, factors)
        columns = base.dense().astype(s.dtype).T
        for level, turn in enumerate(each):
            columns = _turned(columns, turn.mT, level)
        return times(columns.T, s)

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        each = self._turns(base, factors).astype(x.dtype)
        turned = dropped = dropout(x, factors, dropout_key)
        for level in reversed(range(self.butterfly_factors)):
            turned = _turned(turned, each[level], level)
        x = turned if dropped is x else x + (turned - dropped)
        return times(base.dot(x), factors.trainable["s"])

    def to_peft(self, base: Base, factors: Factors, lookup: bool = False) -> Peft | None:
        if lookup:
            return None
        settings = {"peft_type": "BOFT", "boft_block_size": 2 * self._half(base.shape)}
        settings |= {"boft_n_butterfly_factor": self.butterfly_factors, "boft_block_num": 0}
        return Peft(settings, stored(self.peft_layouts, factors.trainable))

    @classmethod
    def from_peft(cls, config: Settings) -> "BOFT | None":
        fields = {"boft_block_size": 4, "boft_n_butterfly_factor": 1, "boft_block_num": 0}
        if (known := settings_of(config, "BOFT", **fields, tensor_shapes=None)) is None:
            return None
        shape = (known["tensor_shapes"] or {}).get(cls.peft_layouts["q"].name, ())
        size, factors = known["boft_block_size"], known["boft_n_butterfly_factor"]
        if len(shape) == 4:
            size, factors = _of_tensor(known, shape)
        elif known["boft_block_num"]:
            blocks = quoted(known["boft_block_num"])
            raise ValueError(f"BOFT of boft_block_num={blocks} has no tensor of their rotations")
        if size % 2:
            raise ValueError(
                f"BOFT with blocks of {quoted(size)} inputs is not read, as a block has two halves "
                "here; merge it in PEFT (`merge_and_unload`), and read the merged model"
            )
        return cls(block_size=size, butterfly_factors=factors)

    def count(self, shape: tuple[int, int]) -> int:
        angles = shape[0] * (2 * self._half(shape) - 1) // 2
        return self.butterfly_factors * angles + shape[1]

    def _half(self, shape: tuple[int, int]) -> int:
        """b / 2."""
        runs = shape[0] // 2**self.butterfly_factors
        return next(n for n in range(min(self.block_size // 2, runs), 0, -1) if runs % n == 0)

    def _turns(self, base: Base, factors: Factors) -> Array:
        """B_i - I in the blocks of each factor, (m, in / b, b, b)."""
        return turns(factors.trainable["q"], 2 * self._half(base.shape))


def _of_tensor(known: Settings, shape: tuple[int, ...]) -> tuple[int, int]:
    """b and m of PEFT's tensor (m, in / b, b, b).

    Raises:
      ValueError: PEFT makes another tensor of its settings.
    """
    number = "boft_block_num" if known["boft_block_num"] else "boft_block_size"
    held = {number: shape[1 if number == "boft_block_num" else 3]}
    if shape[0] != 1:  # without the extension for CUDA, whatever the config says
        held["boft_n_butterfly_factor"] = shape[0]
    for name, x in held.items():
        if x != known[name]:
            raise ValueError(
                f"BOFT with {name}={quoted(known[name])} has a tensor of the shape {shape}, that "
                f"of {name}={x}"
            )
    return shape[3], shape[0]


def _turned(x: Array, turn: Array, level: int) -> Array:
    """x (..., in) times B_i, i = level + 1; `turn` (in / b, b, b) is B_i - I in its blocks."""
    blocks, size, _ = turn.shape
    apart = 2**level
    runs = x.reshape(*x.shape[:-1], blocks // apart, 2, apart, size // 2)
    together = runs.swapaxes(-3, -2).reshape(*x.shape[:-1], blocks, size)
    moved = jnp.einsum("...bi,bij->...bj", together, turn)
    moved = moved.reshape(*x.shape[:-1], blocks // apart, apart, 2, size // 2)
    return x + moved.swapaxes(-3, -2).reshape(x.shape)
