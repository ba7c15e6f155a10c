"""VeRA: frozen random projections that all matrices share, and two trained vectors for each.

Kopiczko et al. 2023, "VeRA: Vector-based Random Matrix Adaptation", arXiv 2310.11454, equation 2.
For W of shape (in, out), used as x @ W,

    W' = W + A^T diag(d) B diag(b).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.methods.checks import (
    require_dropout,
    require_nonzero,
    require_rank,
    require_ratio,
)
from lora_jax.methods.products import (
    add,
    dropout,
    dropout_constants,
    product,
    ratio_constants,
    times,
)
from lora_jax.peft_format import Config, Layouts, Peft, same
from lora_jax.variant import Base, Factors, Suggested, Variant, wide


@dataclasses.dataclass(frozen=True)
class VeRA(Variant):
    """A and B are random, frozen and shared; d and b are trained.

    Differences from plain LoRA: rank + out numbers are trained for a matrix, not rank * (in + out),
    so ranks are larger (256 to 1024 in the paper) and may exceed the matrix's own; there is no
    scale; d starts at `d_init` and b at zero, so that W' = W. A (rank, largest in) and B (rank,
    largest out) are stored once, and smaller matrices take their first columns, as in PEFT.
    """

    peft: ClassVar[str] = "VeraConfig"
    peft_layouts: ClassVar[Layouts] = {"d": same("vera_lambda_d"), "b": same("vera_lambda_b")}
    peft_config: ClassVar[Config] = Config(
        "VERA",
        {"r": ("rank", 256), "d_initial": ("d_init", 0.1), "vera_dropout": ("dropout", 0.0)},
        {
            "projection_prng_key": 0,
            "save_projection": True,
            "fan_in_fan_out": False,
            "bias": "none",
        },
    )
    suggested: ClassVar[Suggested] = Suggested(
        2e-2, 1e-2, (3e-3, 1e-2, 3e-2), settings={"rank": 256}
    )
    remade: ClassVar[tuple[str, ...]] = ("projection_a", "projection_b")

    rank: int = 256
    """The rows of A and of B."""
    d_init: float = 0.1
    """What every entry of d starts at."""
    dropout: float = 0.0
    """Probability of dropping an entry of the adapter's input while a `dropout_key` is given."""
    learning_rate_ratio: float = 1.0
    """How many times faster b learns than d."""

    def __post_init__(self) -> None:
        require_rank(self.rank)
        require_nonzero("d_init", self.d_init)
        require_dropout(self.dropout)
        require_ratio(self.learning_rate_ratio)

    def init_shared(
        self, key: Array, shapes: Sequence[tuple[int, int]], dtype: Any
    ) -> dict[str, Array]:
        one, two = jax.random.split(key)
        inputs, outputs = (max(sizes) for sizes in zip(*shapes, strict=True))
        a = _kaiming_uniform(one, (self.rank, inputs), inputs, dtype)
        b = _kaiming_uniform(two, (self.rank, outputs), self.rank, dtype)
        return {"projection_a": a, "projection_b": b, "init_key": jax.random.key_data(key)}

    def init(self, key: Array, base: Base) -> Factors:
        dtype = wide(base.dtype)
        d, b = jnp.full(self.rank, self.d_init, dtype), jnp.zeros(base.shape[1], dtype)
        constants = dropout_constants(self.dropout, dtype)
        constants |= ratio_constants(self.learning_rate_ratio, dtype)
        return Factors({"d": d, "b": b}, constants)

    def weight(self, base: Base, factors: Factors) -> Array:
        d, b = factors.trainable["d"], factors.trainable["b"]
        down, up = _projections(base, factors, d.dtype)
        return base.dense().astype(d.dtype) + (down.T * d[None, :]) @ (up * b[None, :])

    def as_lora(self, base: Base, factors: Factors) -> tuple[Array, Array] | None:
        d, b = factors.trainable["d"], factors.trainable["b"]
        down, up = _projections(base, factors, d.dtype)
        return d[:, None] * down, up * b[None, :]

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        d, b = (factors.trainable[name].astype(x.dtype) for name in ("d", "b"))
        down, up = _projections(base, factors, x.dtype)
        y = product(dropout(x, factors, dropout_key), down, up, base.accumulate, d)
        return add(base.dot(x), times(y, b))

    def dot_t(self, x: Array, base: Base, factors: Factors) -> Array:
        d, b = (factors.trainable[name].astype(x.dtype) for name in ("d", "b"))
        down, up = _projections(base, factors, x.dtype)
        return base.dot_t(x) + product(times(x, b), up, down, base.accumulate, d)

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        d, b = (factors.trainable[name].astype(base.dtype) for name in ("d", "b"))
        down, up = _projections(base, factors, base.dtype)
        hidden = times(jnp.moveaxis(jnp.take(down, rows, axis=1, mode="clip"), 0, -1), d)
        return base.take(rows) + times(hidden @ up, b)

    def shared_to_peft(self, shared: dict[str, Array], shapes: Sequence[tuple[int, int]]) -> dict:
        return {"vera_A": shared["projection_a"], "vera_B": shared["projection_b"].T}

    def shared_from_peft(self, peft: Peft, begun: dict[str, Array]) -> dict[str, Array]:
        if not {"vera_A", "vera_B"} <= peft.shared.keys():
            raise ValueError("VERA was saved without its projections, which torch alone can draw")
        both = {"projection_a": peft.shared["vera_A"], "projection_b": peft.shared["vera_B"].T}
        return {**begun, **both}

    def count(self, shape: tuple[int, int]) -> int:
        return self.rank + shape[1]

    def learning_rates(
        self, constants: Mapping[str, dict[str, Array]]
    ) -> dict[str, dict[str, Array]]:
        return {path: {"b": each["ratio"]} for path, each in constants.items() if "ratio" in each}


def _projections(base: Base, factors: Factors, dtype: Any) -> tuple[Array, Array]:
    """The shared A (rank, in) and B (rank, out), cut to the matrix."""
    inputs, outputs = base.shape
    down, up = factors.constants["projection_a"], factors.constants["projection_b"]
    return down[:, :inputs].astype(dtype), up[:, :outputs].astype(dtype)


def _kaiming_uniform(key: Array, shape: tuple[int, int], fan_in: int, dtype: Any) -> Array:
    """U(-sqrt(6 / fan_in), sqrt(6 / fan_in)), as PEFT draws them."""
    bound = math.sqrt(6 / fan_in)
    return jax.random.uniform(key, shape, dtype, -bound, bound)
