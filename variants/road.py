"""RoAd: pairs of outputs are rotated and rescaled.

Liao and Monz 2024, "3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and
Composability", arXiv 2409.00119. Two outputs y1 and y2 of x W become

    y1' = a1 cos(t1) y1 - a3 sin(t3) y2,    y2' = a4 sin(t4) y1 + a2 cos(t2) y2.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from lora_jax.methods.checks import require_count
from lora_jax.peft_format import Layouts, Peft, Settings, same, settings_of, stored
from lora_jax.variant import Base, Factors, Suggested, Variant, wide


@dataclasses.dataclass(frozen=True)
class RoAd(Variant):
    """Angles `theta`, in radians, and scales `alpha`, each of (per_pair out / 2,) numbers.

    With one angle and scale for a pair, all of t are equal, and all of a; with two, each output has
    its own (t1 = t3, t2 = t4). They are stored group by group: t1 of its pairs, then t2, t3, t4.

    Differences from plain LoRA: multiplicative, without rank; angles start at zero and scales at
    one. Outputs are turned after the product with W, number by number, so no dense matrix is
    formed. Difference from PEFT: only the matrix is turned, unless `biases` is set; PEFT turns the
    output of a layer, with its bias. PEFT also refuses a group size that does not divide `out`.
    """

    title: ClassVar[str] = "RoAd"
    peft: ClassVar[str] = "RoadConfig"
    peft_layouts: ClassVar[Layouts] = {
        "theta": same("road_theta", 0, 0.0),
        "alpha": same("road_alpha", 0, 1.0),
    }
    suggested: ClassVar[Suggested] = Suggested(2e-2, 1e-3, (3e-3, 1e-2, 3e-2))

    per_pair: int = 1
    """How many angles a pair has, and how many scales: 1, 2 or 4 (RoAd1, RoAd2, RoAd4)."""
    group_size: int = 64
    """Each output of a group's first half is paired with one of its second half, in order.

    A matrix has groups of the largest even divisor of `out` up to this. 2 pairs neighbours, as in
    the paper; which outputs are paired hardly matters, but long halves are faster.
    """
    biases: bool = False
    """Whether a layer's bias is turned with its outputs, as in PEFT."""

    def __post_init__(self) -> None:
        require_count("per_pair", self.per_pair)
        if self.per_pair not in (1, 2, 4):
            raise ValueError(f"per_pair must be 1, 2 or 4, got {self.per_pair!r}")
        require_count("group_size", self.group_size, least=2)

    def validate(self, shape: tuple[int, int]) -> None:
        if shape[1] % 2:
            raise ValueError(f"the {shape[1]} outputs of {shape} cannot be paired")

    def init(self, key: Array, base: Base) -> Factors:
        count, dtype = self.per_pair * base.shape[1] // 2, wide(base.dtype)
        return Factors({"theta": jnp.zeros(count, dtype), "alpha": jnp.ones(count, dtype)}, {})

    def weight(self, base: Base, factors: Factors) -> Array:
        dense = base.dense().astype(factors.trainable["theta"].dtype)
        return self._turned(dense, factors)

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        return self._turned(base.dot(x), factors)

    def dot_t(self, x: Array, base: Base, factors: Factors) -> Array:
        return base.dot_t(self._turned(x, factors, transpose=True))

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        return self._turned(base.take(rows), factors)

    @property
    def adapts_bias(self) -> bool:
        return self.biases

    def bias(self, bias: Array, factors: Factors) -> Array:
        return self._turned(bias.astype(factors.trainable["theta"].dtype), factors)

    def to_peft(self, base: Base, factors: Factors, lookup: bool = False) -> Peft | None:
        if lookup:
            return None
        size = 2 * self._half(base.shape[1])
        settings = {"peft_type": "ROAD", "variant": f"road_{self.per_pair}", "group_size": size}
        return Peft(settings, stored(self.peft_layouts, factors.trainable), biases=True)

    @classmethod
    def from_peft(cls, config: Settings) -> "RoAd | None":
        fields = {"variant": "road_1", "group_size": 64, "layer_has_bias": False}
        if (known := settings_of(config, "ROAD", **fields)) is None:
            return None
        if known["variant"] not in (names := ("road_1", "road_2", "road_4")):
            raise ValueError(f"ROAD: variant {known['variant']!r} is none of {', '.join(names)}")
        per_pair, size = int(known["variant"][-1]), known["group_size"]
        return cls(per_pair=per_pair, group_size=size, biases=known["layer_has_bias"])

    def factors_from_peft(self, base: Base, peft: Peft, begun: Factors) -> Factors:
        if base.shape[1] % self.group_size:  # PEFT's groups have this size
            raise ValueError(f"groups of {self.group_size} do not divide {base.shape[1]} outputs")
        return super().factors_from_peft(base, peft, begun)

    def count(self, shape: tuple[int, int]) -> int:
        return self.per_pair * shape[1]

    def _half(self, outputs: int) -> int:
        """Half of a group's size."""
        most = min(self.group_size, outputs) // 2
        return next(n for n in range(most, 0, -1) if outputs % (2 * n) == 0)

    def _turned(self, y: Array, factors: Factors, transpose: bool = False) -> Array:
        """y (..., out), turned; with `transpose`, times the transpose of what turns it."""
        outputs = y.shape[-1]
        half = self._half(outputs)
        form = *[1] * (y.ndim - 1), -1, self.per_pair, half
        theta, alpha = (factors.trainable[name].reshape(form) for name in ("theta", "alpha"))
        same = (alpha * jnp.cos(theta))[..., :2, :].astype(y.dtype)
        other = (alpha * jnp.sin(theta))[..., -2:, :].astype(y.dtype)
        if transpose:
            other = -jnp.flip(other, axis=-2)
        pairs = y.reshape(*y.shape[:-1], outputs // half // 2, 2, half)
        swapped = jnp.stack([-pairs[..., 1, :], pairs[..., 0, :]], axis=-2)
        return (same * pairs + other * swapped).reshape(y.shape)
