"""LoHa: two low-rank updates, multiplied entry by entry.

Hyeon-Woo et al. 2021, "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated
Learning", arXiv 2108.06098; as an adapter, Yeh et al. 2023, "Navigating Text-To-Image
Customization: From LyCORIS Fine-Tuning to Model Evaluation", arXiv 2309.14859. For W of shape (in,
out), used as x @ W,

    W' = W + s (A^T B) * (C^T D).
"""

import dataclasses
from typing import Any, ClassVar

import jax
from jax import Array

from lora_jax.methods import peft_lora
from lora_jax.methods.lowrank import LowRank
from lora_jax.peft_format import (
    Config,
    Layouts,
    Peft,
    loaded,
    number,
    same,
    stored,
    transposed,
)
from lora_jax.variant import Base, Factors


@dataclasses.dataclass(frozen=True)
class LoHa(LowRank):
    """The product of both updates is taken entry by entry.

    A and C are (rank, in), B and D (rank, out).

    Differences from plain LoRA: twice the numbers, for an update whose rank may be rank^2. A and B
    are LoRA's, with all of its settings; C and D are drawn, and neither starts at zero. Products
    need no dense matrix: the update is the low-rank one of rank^2 rows A[i] * C[j] and B[i] * D[j]
    (with a start that is subtracted, 2 rank^2). Beyond a rank of sqrt(min(in, out)) they cost more
    than dense ones.

    Differences from PEFT: B starts at zero, as in LyCORIS; PEFT's `hada_w2_b` does, which is on the
    side of the inputs. PEFT makes the update dense, and drops whole outputs of it or all of it
    (`rank_dropout`, `module_dropout`); `dropout` here drops inputs, as in LoRA. LyCORIS draws from
    normal distributions; C and D here are drawn as in PEFT.
    """

    peft: ClassVar[str] = "LoHaConfig"
    peft_layouts: ClassVar[Layouts] = {
        "a": same("hada_w1_b", "all"),
        "b": transposed("hada_w1_a", 0, 0.0),
        "c": same("hada_w2_b", "all"),
        "d": transposed("hada_w2_a", 0, 0.0),
    }
    peft_config: ClassVar[Config] = Config(
        "LOHA",
        {"r": ("rank", 8), "alpha": ("alpha", 8.0)},
        {"rank_pattern": {}, "alpha_pattern": {}},
    )
    additive: ClassVar[bool] = False

    def init(self, key: Array, base: Base) -> Factors:
        first, second, third = jax.random.split(key, 3)
        trainable, constants = super().init(first, base)
        bounds = {"c": base.shape[0] ** -0.5, "d": self.rank**-0.5}
        pairs = zip(bounds.items(), (second, third), ("a", "b"), strict=True)
        for (name, bound), drawn, like in pairs:
            shape, dtype = trainable[like].shape, trainable[like].dtype
            trainable[name] = jax.random.uniform(drawn, shape, dtype, -bound, bound)
        return Factors(trainable, constants)

    def low_rank_factors(self, factors: Factors, dtype: Any) -> tuple[Array, Array]:
        """The rows A[i] * C[j] (rank^2, in) and s B[i] * D[j] (rank^2, out), cast to `dtype`."""
        a, b = super().low_rank_factors(factors, factors.trainable["c"].dtype)
        c, d = factors.trainable["c"], factors.trainable["d"]
        if "mask" in factors.constants:
            d = factors.constants["mask"][:, None] * d
        return _row_products(a, c).astype(dtype), _row_products(b, d).astype(dtype)

    def to_peft(self, base: Base, factors: Factors, lookup: bool = False) -> Peft | None:
        """LoHa; plain LoRA of the same update where a start is subtracted."""
        if "a0" in factors.constants:
            return super().to_peft(base, factors, lookup)
        if lookup:
            return None
        used = self._used(factors, len(factors.trainable["a"]))
        rows = {name: x[used] for name, x in factors.trainable.items()}
        rank, scale = int(used.sum()), float(factors.constants["scale"])
        settings = self.peft_settings(base, factors) | {"r": rank, "alpha": number(scale * rank)}
        return Peft(settings, stored(self.peft_layouts, rows))

    def factors_from_peft(self, base: Base, peft: Peft, begun: Factors) -> Factors:
        rows = loaded(self.peft_layouts, peft.tensors)
        return begun._replace(trainable=peft_lora.padded(rows, begun, self.rank))

    def count(self, shape: tuple[int, int]) -> int:
        return 2 * super().count(shape)


def _row_products(x: Array, y: Array) -> Array:
    """All products of a row of x (m, size) with a row of y (n, size): (m n, size)."""
    return (x[:, None, :] * y[None, :, :]).reshape(-1, x.shape[1])
