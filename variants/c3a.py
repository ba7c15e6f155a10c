"""C3A: the update is a grid of circulant matrices, and products with it are convolutions.

Chen et al. 2024, "Parameter-Efficient Fine-Tuning via Circular Convolution", arXiv 2407.19342. For
W of shape (in, out), used as x @ W, in blocks of b x b, and kernels w_mn of b numbers each,

    W'[n b + j, m b + k] = W[n b + j, m b + k] + w_mn[(j - k) mod b] / in.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lora_jax.methods.checks import require_count, require_dropout
from lora_jax.methods.products import dropout, dropout_constants
from lora_jax.peft_format import Config, Layouts, same
from lora_jax.variant import Base, Factors, Suggested, Variant, wide


@dataclasses.dataclass(frozen=True)
class C3A(Variant):
    """The kernels are `w` (out / b, in / b, b); they start at zero.

    Differences from plain LoRA: no rank; in * out / b numbers, and an update that may have full
    rank. Products go through the discrete Fourier transform, block by block: with F that of a row,
    y_m = F^-1(sum_n F(x_n) * conj(F(w_mn))). No dense matrix is formed.

    Equal to PEFT's C3A of the same block size and kernels (but that PEFT computes in float32).
    PEFT, which has the authors' code, draws the kernels unless `init_weights=True`, so that W'
    differs from W at the start. It has no dropout, and refuses a block size that does not divide
    both sides. For b > 2 its gradient of x takes the slopes of a block backwards, and so is wrong
    for whatever trains before this layer.
    """

    title: ClassVar[str] = "C3A"
    peft: ClassVar[str] = "C3AConfig"
    peft_layouts: ClassVar[Layouts] = {"w": same("c3a_kernel", 0, 0.0)}
    peft_config: ClassVar[Config] = Config(
        "C3A", {"block_size": ("block_size", 256)}, {"block_size_pattern": {}}
    )
    suggested: ClassVar[Suggested] = Suggested(1e-1, 3e-1, (3e-2, 1e-1, 3e-1))

    block_size: int = 256
    """The largest b: a matrix has blocks of the largest common divisor of in and out up to it."""
    dropout: float = 0.0
    """Probability of dropping an entry of the adapter's input while a `dropout_key` is given."""

    def __post_init__(self) -> None:
        require_count("block_size", self.block_size)
        require_dropout(self.dropout)

    def validate(self, shape: tuple[int, int]) -> None:
        if self._block(shape) == 1 < self.block_size:
            raise ValueError(f"no block of 2 to {self.block_size} divides both sides of {shape}")

    def init(self, key: Array, base: Base) -> Factors:
        dtype, (inputs, outputs), size = wide(base.dtype), base.shape, self._block(base.shape)
        constants = dropout_constants(self.dropout, dtype)
        return Factors({"w": jnp.zeros((outputs // size, inputs // size, size), dtype)}, constants)

    def weight(self, base: Base, factors: Factors) -> Array:
        w = factors.trainable["w"]
        places = np.arange(w.shape[2])
        circulant = w[:, :, (places[:, None] - places[None, :]) % len(places)]  # m, n, j, k
        update = circulant.transpose(1, 2, 0, 3).reshape(base.shape) / base.shape[0]
        return base.dense().astype(w.dtype) + update

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        w, y = factors.trainable["w"], base.dot(x)
        x = dropout(x, factors, dropout_key).astype(wide(x.dtype))
        x = x.reshape(*x.shape[:-1], *w.shape[1:])
        kernels = jnp.conj(jnp.fft.rfft(w.astype(x.dtype) / base.shape[0]))
        waves = jnp.einsum("...nf,mnf->...mf", jnp.fft.rfft(x), kernels)
        return y + jnp.fft.irfft(waves, w.shape[2]).reshape(y.shape).astype(y.dtype)

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        w = (factors.trainable["w"] / base.shape[0]).astype(base.dtype)
        size = w.shape[2]
        places = lax.broadcasted_iota(rows.dtype, (*rows.shape, size), rows.ndim)
        places = ((rows % size)[..., None] + (size - places)) % size  # never below 0
        kernels = jnp.take(w, rows // size, axis=1, mode="clip")  # (out / b, *rows, b)
        update = jnp.moveaxis(jnp.take_along_axis(kernels, places[None], -1, mode="clip"), 0, -2)
        return base.take(rows) + update.reshape(*rows.shape, base.shape[1])

    def peft_settings(self, base: Base, factors: Factors) -> dict[str, Any]:
        return super().peft_settings(base, factors) | {"block_size": self._block(base.shape)}

    def count(self, shape: tuple[int, int]) -> int:
        return shape[0] * shape[1] // self._block(shape)

    def _block(self, shape: tuple[int, int]) -> int:
        """The largest common divisor of in and out that is at most `block_size`."""
        common = math.gcd(*shape)
        return max(n for n in range(1, min(common, self.block_size) + 1) if common % n == 0)
