"""IA3: outputs (or inputs) are rescaled by trained vectors.

Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
Learning", arXiv 2205.05638, section 3.3. For W of shape (in, out), used as x @ W,

    W' = W diag(l),    or W' = diag(l) W for inputs.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from lora_jax.methods.products import times
from lora_jax.peft_format import Layouts, Peft, Settings, settings_of, vector
from lora_jax.variant import Base, Factors, Suggested, Variant, wide

SIDES = ("outputs", "inputs")


@dataclasses.dataclass(frozen=True)
class IA3(Variant):
    """The vector l is trained and starts at one; `scales="inputs"` rescales inputs.

    The paper scales the outputs of keys and values, and the inner activations of feed-forward
    blocks, which are the inputs of their second matrix:

        targets={"(key|value)/kernel": IA3(), "down/kernel": IA3(scales="inputs")}

    Differences from plain LoRA: no rank and no scale; one number for each output (input), which
    multiplies it. Difference from PEFT: only the matrix is rescaled, unless `biases` is set; PEFT
    rescales the output of a layer, with its bias (the same where there are no biases, as in the
    paper's T5).
    """

    peft: ClassVar[str] = "IA3Config"
    suggested: ClassVar[Suggested] = Suggested(
        2e-2, targets=("(key|value)/kernel", ("down/kernel", {"scales": "inputs"}))
    )

    scales: str = "outputs"
    """`outputs`, or `inputs`: what the vector l rescales."""
    biases: bool = False
    """Whether a layer's bias is rescaled with its outputs: y = (x W + bias) l, as in PEFT.

    Where inputs are rescaled, the bias stays in any case.
    """

    def __post_init__(self) -> None:
        if self.scales not in SIDES:
            raise ValueError(f"scales '{self.scales}': expected outputs or inputs")

    def init(self, key: Array, base: Base) -> Factors:
        size = base.shape[SIDES.index(self.scales) - 1]
        return Factors({"l": jnp.ones(size, wide(base.dtype))}, {})

    def weight(self, base: Base, factors: Factors) -> Array:
        scale = factors.trainable["l"]
        by = scale[None, :] if self.scales == "outputs" else scale[:, None]
        return base.dense().astype(scale.dtype) * by

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        scale = factors.trainable["l"]
        if self.scales == "outputs":
            return times(base.dot(x), scale)
        return base.dot(times(x, scale))

    def dot_t(self, x: Array, base: Base, factors: Factors) -> Array:
        scale = factors.trainable["l"]
        if self.scales == "outputs":
            return base.dot_t(times(x, scale))
        return times(base.dot_t(x), scale)

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        scale, taken = factors.trainable["l"], base.take(rows)
        if self.scales == "outputs":
            return times(taken, scale)
        return taken * jnp.take(scale, rows, mode="clip").astype(taken.dtype)[..., None]

    @property
    def peft_layouts(self) -> Layouts:
        return {
            "l": vector("ia3_l", 0, 1.0) if self.scales == "outputs" else vector("ia3_l", "all")
        }

    @property
    def adapts_bias(self) -> bool:
        return self.biases and self.scales == "outputs"

    def bias(self, bias: Array, factors: Factors) -> Array:
        scale = factors.trainable["l"]
        return bias.astype(scale.dtype) * scale

    def to_peft(self, base: Base, factors: Factors, lookup: bool = False) -> Peft | None:
        if lookup:
            return None
        inputs = ["{module}"] if self.scales == "inputs" else []
        settings = {"peft_type": "IA3", "feedforward_modules": inputs, "fan_in_fan_out": False}
        scale = factors.trainable["l"][None, :] if inputs else factors.trainable["l"][:, None]
        return Peft(settings, {"ia3_l": scale}, biases=not inputs)

    @classmethod
    def from_peft(cls, config: Settings) -> "IA3 | None":
        known = settings_of(config, "IA3", feedforward_modules=None, layer_has_bias=False)
        if known is None:
            return None
        if known["feedforward_modules"]:
            return cls(scales="inputs")
        return cls(biases=known["layer_has_bias"])

    def count(self, shape: tuple[int, int]) -> int:
        return shape[SIDES.index(self.scales) - 1]
