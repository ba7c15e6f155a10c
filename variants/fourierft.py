"""FourierFT: a few trained coefficients of the update's discrete Fourier transform.

Gao et al. 2024, "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform", arXiv
2405.03003. For W of shape (in, out), used as x @ W, and E of the same shape, zero but for `n`
trained real coefficients c at fixed random places,

    W' = W + alpha Re(ifft2(E)).
"""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.methods.checks import require_count, require_finite
from lora_jax.methods.initialization import distinct_places
from lora_jax.peft_format import Config, Layouts, Peft, loaded, same
from lora_jax.variant import Base, Factors, Variant, wide

LARGEST = (2**32 - 1) // 20
"""The entries from which on PyTorch shuffles in another way."""
SEED = 777
"""PEFT's default for `random_loc_seed`."""


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
    peft_layouts: ClassVar[Layouts] = {"c": same("fourierft_spectrum")}
    peft_config: ClassVar[Config] = Config(
        "FOURIERFT",
        {"n_frequency": ("frequencies", 1000), "scaling": ("alpha", 150.0)},
        {"random_loc_seed": SEED, "n_frequency_pattern": {}, "fan_in_fan_out": False},
        {"random_loc_seed": SEED},
    )

    frequencies: int = 1000
    """How many coefficients are trained."""
    alpha: float = 150.0
    """The factor of the update."""

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

    def to_peft(self, base: Base, factors: Factors, lookup: bool = False) -> Peft | None:
        """Only for the places of PEFT's default seed: its files hold none."""
        if lookup or math.prod(base.shape) >= LARGEST:
            return None
        theirs = _places_in_peft(SEED, base.shape, self.frequencies)
        if not np.array_equal(factors.constants["places"], theirs):
            return None
        return super().to_peft(base, factors, lookup)

    def factors_from_peft(self, base: Base, peft: Peft, begun: Factors) -> Factors:
        trainable = loaded(self.peft_layouts, peft.tensors)
        found = {name: x.shape for name, x in trainable.items()}
        if found != {"c": (self.frequencies,)}:
            raise ValueError(f"FOURIERFT: n_frequency is {self.frequencies}, the file has {found}")
        self.validate(base.shape)  # before as many places are drawn
        seed = peft.settings.get("random_loc_seed", SEED)
        places = jnp.asarray(_places_in_peft(seed, base.shape, self.frequencies))
        return Factors(trainable, {**begun.constants, "places": places})

    def count(self, shape: tuple[int, int]) -> int:
        return self.frequencies


def _places_in_peft(seed: int, shape: tuple[int, int], count: int) -> np.ndarray:
    """The places (2, count) that PEFT draws by `torch.randperm` of all entries, and does not save.

    That is Fisher and Yates's shuffle of a W stored as (out, in), by a Mersenne twister.

    Raises:
      ValueError: PyTorch shuffles a matrix of this size in another way.
    """
    inputs, outputs = shape
    size, moved, chosen = inputs * outputs, {}, []
    if size >= LARGEST:
        raise ValueError(f"FOURIERFT: the places of PEFT in a matrix of {shape} are not known")
    draws = np.random.RandomState(seed).randint(0, 2**32, count, np.uint32)
    for step, draw in enumerate(draws.tolist()):
        other = step + draw % (size - step)
        chosen.append(moved.get(other, other))
        moved[other] = moved.get(step, step)
    rows, columns = np.divmod(np.array(chosen, np.int32), inputs)
    return np.stack([columns, rows])
