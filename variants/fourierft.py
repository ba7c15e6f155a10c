"""FourierFT: a few trained coefficients of the update's discrete Fourier transform.

Gao et al. 2024, "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform", arXiv
2405.03003. For W of shape (in, out), used as x @ W, and E of the same shape, zero but for `n`
trained real coefficients c at fixed random places,

    W' = W + alpha Re(ifft2(E)).
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from lora_jax.methods.checks import require_count, require_finite
from lora_jax.methods.places import distinct_places
from lora_jax.variant import Base, Factors, Variant, wide


@dataclasses.dataclass(frozen=True)
class FourierFT(Variant):
    """`c` (frequencies,) at the constant `places` of E (2, frequencies): inputs, and outputs.

    Differences from plain LoRA: no rank; the number of trained numbers does not depend on the size
    of W, and the update may have full rank. Its products use the dense W', as PEFT's do, and its
    gradient. (The transform of x times the sparse E would need neither, but XLA's CPU backend
    fails on such transforms where x is sharded.)

    Equal to PEFT's FourierFT of the same places and coefficients (but that PEFT transforms in
    float32). The coefficients start at zero, so that W' = W; the paper, and PEFT unless
    `init_weights=True`, draw them from N(0, 1). Each matrix has its own places, one in each of
    `frequencies` stretches of E; the paper has the same ones in all layers. Its preferred bands of
    frequencies are not here.
    """

    peft: ClassVar[str] = "FourierFTConfig"

    frequencies: int = 1000
    """How many coefficients are trained."""
    alpha: float = 150.0

    def __post_init__(self) -> None:
        require_count("frequencies", self.frequencies)
        require_finite("alpha", self.alpha)

    def validate(self, shape: tuple[int, int]) -> None:
        if self.frequencies > shape[0] * shape[1]:
            raise ValueError(f"{self.frequencies} frequencies exceed the entries of {shape}")

    def init(self, key: Array, base: Base) -> Factors:
        dtype = wide(base.dtype)
        places = distinct_places(key, base.shape, self.frequencies)
        constants = {"places": places, "scale": jnp.asarray(self.alpha, dtype)}
        return Factors({"c": jnp.zeros(self.frequencies, dtype)}, constants)

    def weight(self, base: Base, factors: Factors) -> Array:
        c = factors.constants["scale"] * factors.trainable["c"]
        rows, columns = factors.constants["places"]
        spectrum = jnp.zeros(base.shape, c.dtype).at[rows, columns].set(c)
        return base.dense().astype(c.dtype) + jnp.fft.ifft2(spectrum).real

    def count(self, shape: tuple[int, int]) -> int:
        return self.frequencies
