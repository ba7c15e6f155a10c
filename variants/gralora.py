"""GraLoRA: the weight is cut into a grid of blocks, each with a LoRA of its own.

Jung et al. 2025, "GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning", arXiv
2505.20355. For W of shape (in, out), used as x @ W, in k x k blocks W_ij,

    W'_ij = W_ij + s A_ij^T B_ij,    A_ij (rank / k, in / k), B_ij (rank / k, out / k).
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.methods.checks import require_count
from lora_jax.methods.lowrank import LowRank
from lora_jax.methods.products import add, dropout
from lora_jax.peft_format import Config, Layout, Layouts, Peft, loaded, stored
from lora_jax.variant import Base, Factors


@dataclasses.dataclass(frozen=True)
class GraLoRA(LowRank):
    """All A_ij are in `a` (rank, in), all B_ij in `b` (rank, out).

    Row j rank / k + n of `a` has row n of A_1j, A_2j, ..., one after the other, and row
    i rank / k + n of `b` has row n of B_i1, B_i2, ...

    Differences from plain LoRA: as many numbers and multiplications, for an update of rank up to
    k rank; an input has an effect on the A_ij of its own blocks alone. Each block starts as LoRA of
    W_ij would: what PiSSA and OLoRA take is taken from each. Starts from data are refused. No dense
    matrix is formed after the start. `blocks=1` is LoRA.

    Equal to PEFT's GraLoRA, which is the authors', dropout included, with s = alpha / rank. Its
    hybrid with a LoRA of the whole matrix (`hybrid_r`) is not here.
    """

    title: ClassVar[str] = "GraLoRA"
    peft: ClassVar[str] = "GraloraConfig"
    peft_config: ClassVar[Config] = Config(
        "GRALORA",
        {
            **{"r": ("rank", 32), "alpha": ("alpha", 64.0)},
            **{"gralora_dropout": ("dropout", 0.0), "gralora_k": ("blocks", 2)},
        },
        {"hybrid_r": 0, "fan_in_fan_out": False},
    )
    additive: ClassVar[bool] = False
    rows_are_terms: ClassVar[bool] = False

    blocks: int = 2
    """k; the authors advise 2 for ranks up to 32, and 4 from 64. It divides rank, in and out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("blocks", self.blocks)
        for name, rank in (("rank", self.rank), ("max_rank", self.max_rank or self.blocks)):
            if rank % self.blocks:
                raise ValueError(f"{self.blocks} blocks do not divide {name} {rank}")
        if self.needs is not None:
            raise ValueError(f"GraLoRA takes no start from data, as '{self.initialization}' is")
        self._of_a_block()  # refuses what a block cannot have

    def validate(self, shape: tuple[int, int]) -> None:
        super().validate(shape)
        if any(size % self.blocks for size in shape):
            raise ValueError(f"{self.blocks} blocks do not divide both sides of {shape}")

    def init(self, key: Array, base: Base) -> Factors:
        k, (inputs, outputs) = self.blocks, base.shape
        grid = base.dense().reshape(k, inputs // k, k, outputs // k).swapaxes(1, 2)
        start = jax.vmap(jax.vmap(self._of_a_block().init))
        trainable, constants = start(jax.random.split(key, (k, k)), Base(grid, "io"))

        def whole(name: str, x: Array) -> Array:
            """Arrays of all blocks (k, k, ...) as one; numbers are the same in each."""
            if name in ("a", "a0"):
                return x.transpose(1, 2, 0, 3).reshape(-1, inputs)
            if name in ("b", "b0"):
                return x.swapaxes(1, 2).reshape(-1, outputs)
            return jnp.tile(x[0, 0], k) if name == "mask" else x[0, 0]

        each = (
            {name: whole(name, x) for name, x in part.items()} for part in (trainable, constants)
        )
        return Factors(*each)

    def delta(self, factors: Factors) -> Array:
        a, b = self._grids(factors, factors.trainable["b"].dtype)
        whole = jnp.einsum("tjnip,tinjq->ipjq", a, b)
        return whole.reshape(whole.shape[0] * whole.shape[1], -1)

    def as_lora(self, base: Base, factors: Factors) -> tuple[Array, Array] | None:
        a, b = self._grids(factors, factors.trainable["b"].dtype)
        own = jnp.eye(self.blocks, dtype=a.dtype)
        down = jnp.einsum("tjnip,ig->tijngp", a, own)
        up = jnp.einsum("tinjq,jh->tijnhq", b, own)
        return down.reshape(-1, base.shape[0]), up.reshape(-1, base.shape[1])

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        a, b = self._grids(factors, x.dtype)
        hidden = _down(dropout(x, factors, dropout_key), a)
        return add(base.dot(x), _up(hidden, b, base.accumulate))

    def dot_t(self, x: Array, base: Base, factors: Factors) -> Array:
        a, b = self._grids(factors, x.dtype)
        return base.dot_t(x) + _up(_down(x, b), a, base.accumulate)

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        a, b = self._grids(factors, base.dtype)
        blocks, size = a.shape[3:]
        columns = jnp.take(a.reshape(*a.shape[:3], -1), rows, axis=3, mode="clip")
        own = jax.nn.one_hot(rows // size, blocks, dtype=a.dtype)
        return base.take(rows) + _up(jnp.einsum("tjn...,...i->...ijtn", columns, own), b)

    def to_peft(self, base: Base, factors: Factors, lookup: bool = False) -> Peft | None:
        """GraLoRA; plain LoRA of the same update where a start is subtracted or ranks differ."""
        if "a0" in factors.constants or "mask" in factors.constants:
            return super().to_peft(base, factors, lookup)
        if lookup:
            return None
        settings = self.peft_settings(base, factors)
        return Peft(settings, stored(self._layouts(), factors.trainable))

    def factors_from_peft(self, base: Base, peft: Peft, begun: Factors) -> Factors:
        if any(len(x.shape) != 3 for x in peft.tensors.values()):
            raise ValueError("blocks of factors have three axes")
        return begun._replace(trainable=loaded(self._layouts(), peft.tensors))

    def _layouts(self) -> Layouts:
        """Of A (k, in / k, rank), and of B (k, rank, out / k)."""
        k = self.blocks
        return {
            "a": Layout(
                "gralora_A",
                lambda x: x.reshape(len(x), k, -1).transpose(1, 2, 0),
                lambda x: x.transpose(2, 0, 1).reshape(x.shape[2], -1),
            ),
            "b": Layout(
                "gralora_B",
                lambda x: x.reshape(len(x), k, -1).swapaxes(0, 1),
                lambda x: x.swapaxes(0, 1).reshape(x.shape[1], -1),
            ),
        }

    def _of_a_block(self) -> LowRank:
        """LoRA of one block, with the scale of the whole."""
        inherited = {f.name: getattr(self, f.name) for f in dataclasses.fields(LowRank)}
        rank, most = self.rank // self.blocks, self.max_rank and self.max_rank // self.blocks
        inherited |= {"rank": rank, "max_rank": most, "alpha": self.scaling(), "scale": "alpha"}
        return LowRank(**inherited)

    def _grids(self, factors: Factors, dtype: Any) -> tuple[Array, Array]:
        """A as (terms, j, rank / k, i, in / k), and B, scaled, as (terms, i, rank / k, j, out / k).

        There are two terms where a start is subtracted.
        """
        k = self.blocks
        rows = len(factors.trainable["b"]) // k
        both = self.low_rank_factors(factors, dtype)
        first, second = (x.reshape(-1, k, rows, k, x.shape[1] // k) for x in both)
        return first, second


def _down(x: Array, first: Array) -> Array:
    """x (..., k size) times the A_ij of each: (..., i, j, terms, rank / k)."""
    parts = x.reshape(*x.shape[:-1], *first.shape[3:])
    return jnp.einsum("...ip,tjnip->...ijtn", parts, first)


def _up(hidden: Array, second: Array, accumulate: Any = None) -> Array:
    """That times the B_ij, summed over i: (..., k size)."""
    y = jnp.einsum("...ijtn,tinjq->...jq", hidden, second, preferred_element_type=accumulate)
    return y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])
