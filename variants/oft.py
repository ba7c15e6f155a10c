"""OFT: blocks of inputs are rotated before the frozen weight sees them.

Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", arXiv 2306.07280;
acting on the input, as here, Qiu et al. 2025, "Orthogonal Finetuning Made Scalable", arXiv
2506.19847. For W of shape (in, out), used as x @ W,

    W' = R W,  R = diag(R_1, R_2, ...),  R_i = (I + Q_i) (I - Q_i)^-1 = I + 2 Q_i (I - Q_i)^-1,

where each Q_i is skew-symmetric, and so each R_i is a rotation (Cayley's parametrisation). With
`neumann_terms`, the inverse is a truncated series (section 3.3 of the second paper), and R_i is
close to a rotation while Q_i is small.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array, lax

from lora_jax.methods.checks import require_count, require_dropout
from lora_jax.methods.decompositions import side_of, turns
from lora_jax.methods.products import dropout, dropout_constants
from lora_jax.peft_format import (
    Layouts,
    Peft,
    Settings,
    loaded,
    quoted,
    same,
    settings_of,
    stored,
)
from lora_jax.variant import Base, Factors, Variant, wide

MOST_TERMS = 100
"""Of a series: each is a product of matrices in the program."""


@dataclasses.dataclass(frozen=True)
class OFT(Variant):
    """One rotation for each block of `block_size` inputs; `q` (blocks, block (block - 1) / 2).

    Row i of `q` has the entries of Q_i below the diagonal, one column after the other. They start
    at zero, where R = I.

    Differences from plain LoRA: multiplicative, without scale or rank. All angles and lengths among
    the columns of W stay as they are. x is rotated and then multiplied by W, so no dense matrix is
    formed. With dropout, y = (x + drop(x) (R - I)) W.

    Equal to PEFT's OFT with `oft_block_size=block_size` in linear layers: that with
    `use_cayley_neumann=False` has the same `q`, and PEFT's default, a series of five terms, is
    `neumann_terms=5`, where PEFT's q is -`q`. Where `block_size` does not divide `in`, PEFT takes
    the nearest divisor; in its files, the tensors tell which. It rotates the outputs of an
    embedding, here neighbouring words. Its dropout sets whole R_i to I. Its constrained rotations
    (`coft`) and shared blocks are not here.
    """

    peft: ClassVar[str] = "OFTConfig"
    peft_layouts: ClassVar[Layouts] = {"q": same("oft_R.weight", "all")}

    block_size: int = 32
    """The most inputs of a block: a matrix has blocks of the largest divisor of `in` up to this."""
    neumann_terms: int = 0
    """R_i = I + 2 Q_i + ... + 2 Q_i^(n - 2) + Q_i^(n - 1) for n terms, at least 4; 0: the above."""
    dropout: float = 0.0
    """Probability of dropping an entry of the adapter's input while a `dropout_key` is given."""

    def __post_init__(self) -> None:
        require_count("block_size", self.block_size, least=2)
        if self.neumann_terms:
            require_count("neumann_terms", self.neumann_terms, least=4)
            if self.neumann_terms > MOST_TERMS:
                raise ValueError(
                    f"neumann_terms must be at most {MOST_TERMS}, got {quoted(self.neumann_terms)}"
                )
        require_dropout(self.dropout)

    def validate(self, shape: tuple[int, int]) -> None:
        if self._block(shape) == 1:
            raise ValueError(
                f"no block of 2 to {self.block_size} inputs divides the {shape[0]} of {shape}"
            )

    def init(self, key: Array, base: Base) -> Factors:
        dtype, size = wide(base.dtype), self._block(base.shape)
        constants = dropout_constants(self.dropout, dtype)
        blocks, entries = base.shape[0] // size, size * (size - 1) // 2
        return Factors({"q": jnp.zeros((blocks, entries), dtype)}, constants)

    def weight(self, base: Base, factors: Factors) -> Array:
        turn = self._turn(base, factors)
        dense = base.dense().astype(turn.dtype)
        blocks = dense.reshape(*turn.shape[:2], -1)
        return dense + jnp.einsum("bij,bjo->bio", turn, blocks).reshape(dense.shape)

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        turn = self._turn(base, factors).astype(x.dtype)
        blocks = dropout(x, factors, dropout_key).reshape(*x.shape[:-1], *turn.shape[:2])
        moved = jnp.einsum("...bi,bij->...bj", blocks, turn).reshape(x.shape)
        return base.dot(x + moved)

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        turn, size = self._turn(base, factors).astype(base.dtype), self._block(base.shape)
        each = jnp.take(turn.reshape(-1, size), rows, axis=0, mode="clip")
        block = lax.broadcasted_iota(rows.dtype, (*rows.shape, size), rows.ndim)
        block = block + (rows - rows % size)[..., None]
        return base.take(rows) + jnp.einsum("...j,...jo->...o", each, base.take(block))

    def to_peft(self, base: Base, factors: Factors, lookup: bool = False) -> Peft | None:
        if lookup:
            return None
        settings = {"peft_type": "OFT", "r": 0, "oft_block_size": self._block(base.shape)}
        settings["use_cayley_neumann"] = self.neumann_terms > 0
        if self.neumann_terms:
            settings["num_cayley_neumann_terms"] = self.neumann_terms
        return Peft(settings, stored(self.peft_layouts, self._signed(factors.trainable)))

    @classmethod
    def from_peft(cls, config: Settings) -> "OFT | None":
        fields = {"r": 0, "oft_block_size": 32, "tensor_shapes": None}
        fields |= {"use_cayley_neumann": True, "num_cayley_neumann_terms": 5}
        if (known := settings_of(config, "OFT", **fields)) is None:
            return None
        terms = known["num_cayley_neumann_terms"] if known["use_cayley_neumann"] else 0
        if known["use_cayley_neumann"] and terms < 3:
            raise ValueError(
                f"OFT with num_cayley_neumann_terms={terms} is not here, 3 or more are"
            )
        terms = 4 if terms == 3 else terms  # PEFT computes four for three
        shape = (known["tensor_shapes"] or {}).get(cls.peft_layouts["q"].name, ())
        size = _size_in_peft(known["r"], known["oft_block_size"], shape)
        return cls(block_size=size, neumann_terms=terms)

    def factors_from_peft(self, base: Base, peft: Peft, begun: Factors) -> Factors:
        return Factors(self._signed(loaded(self.peft_layouts, peft.tensors)), begun.constants)

    def count(self, shape: tuple[int, int]) -> int:
        return shape[0] * (self._block(shape) - 1) // 2

    def _block(self, shape: tuple[int, int]) -> int:
        """The largest divisor of in that is at most `block_size`."""
        most = min(self.block_size, shape[0])
        return next(n for n in range(most, 0, -1) if shape[0] % n == 0)

    def _turn(self, base: Base, factors: Factors) -> Array:
        """R - I of each block, (blocks, block, block)."""
        return turns(factors.trainable["q"], self._block(base.shape), self.neumann_terms)

    def _signed(self, trainable: Mapping[str, Any]) -> dict[str, Any]:
        """PEFT's series turns the other way than its exact rotation does."""
        return {n: -x for n, x in trainable.items()} if self.neumann_terms else dict(trainable)


def _size_in_peft(number: int, size: int, shape: tuple[int, ...]) -> int:
    """The block size of an adapter that PEFT has written.

    Args:
      number, size: `r` and `oft_block_size` of the config, of which one is zero.
      shape: (blocks, entries) of the tensor, if there is one.

    Raises:
      ValueError: PEFT makes other blocks of these numbers.
    """
    name, asked = ("r", number) if number else ("oft_block_size", size)
    require_count(f"OFT: {name}", asked)
    if len(shape) != 2:
        if number:
            raise ValueError(f"OFT of r={number} blocks has no tensor of their angles")
        return size
    blocks, entries = shape
    found = side_of(entries)
    if found == 1:
        raise ValueError("OFT with blocks of 1 input is not read: it turns nothing, leave it out")
    if not blocks or entries != found * (found - 1) // 2:
        raise ValueError(
            f"OFT has a tensor of the shape {shape}, which is none of angles of blocks"
        )
    inputs = blocks * found
    if _nearest_divisor(inputs, asked) != (blocks if number else found):
        raise ValueError(
            f"OFT with {name}={quoted(asked)} on {inputs} inputs has no tensor of the shape "
            f"{shape}, {blocks} blocks of {found} inputs"
        )
    return found


def _nearest_divisor(n: int, to: int) -> int:
    """The divisor of n that PEFT takes for a number; of two as near, the lower."""
    low = [each for each in range(1, math.isqrt(n) + 1) if n % each == 0]
    return min((*low, *(n // each for each in low)), key=lambda each: (abs(each - to), each))
