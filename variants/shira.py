"""SHiRA: a few random entries of the weight are trained.

Bhardwaj et al. 2024, "Sparse High Rank Adapters", arXiv 2406.13175, with its mask "SHiRA-Rand".
For W of shape (in, out), used as x @ W,

    W'[i, o] = W[i, o] + v_j where (i, o) is place j,    W' = W elsewhere.
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.methods.checks import require_rank
from lora_jax.methods.initialization import distinct_places
from lora_jax.peft_format import Config, Layout, Layouts, Peft, loaded, same
from lora_jax.variant import Base, Factors, Variant, wide


@dataclasses.dataclass(frozen=True)
class SHiRA(Variant):
    """As many entries `v` as LoRA of this rank has numbers, at constant `places` (2, n) of W.

    Differences from plain LoRA: an update of high rank that touches few entries; no scale; nothing
    is drawn but the places, and v starts at zero. One place lies in each of as
    many stretches of W. Its products use the dense W', as PEFT's do, and its gradient: to gather
    the chosen inputs of each token would take more memory.

    Equal to PEFT's SHiRA of the same places. The paper's masks of weight magnitudes, of gradients
    and of both (SNIP), and its structured mask, are not here; PEFT takes them as functions.
    """

    peft: ClassVar[str] = "ShiraConfig"
    peft_layouts: ClassVar[Layouts] = {
        "v": same("shira_weight"),
        "places": Layout("shira_indices", lambda x: x[::-1], lambda x: x[::-1]),
    }
    peft_config: ClassVar[Config] = Config("SHIRA", {"r": ("rank", 32)}, {"mask_type": "random"})

    rank: int = 8
    """As many entries train as LoRA of this rank has numbers."""

    def __post_init__(self) -> None:
        require_rank(self.rank)

    def validate(self, shape: tuple[int, int]) -> None:
        if self.count(shape) > shape[0] * shape[1]:
            raise ValueError(
                f"rank {self.rank} means {self.count(shape)} entries, more than {shape} has"
            )

    def init(self, key: Array, base: Base) -> Factors:
        count = self.count(base.shape)
        places = distinct_places(key, base.shape, count)
        return Factors({"v": jnp.zeros(count, wide(base.dtype))}, {"places": places})

    def weight(self, base: Base, factors: Factors) -> Array:
        v = factors.trainable["v"]
        rows, columns = factors.constants["places"]
        return base.dense().astype(v.dtype).at[rows, columns].add(v)

    def factors_from_peft(self, base: Base, peft: Peft, begun: Factors) -> Factors:
        found = loaded(self.peft_layouts, peft.tensors)
        if "places" not in found:
            raise ValueError("SHIRA: the file has no shira_indices")
        _check_places(found["places"], base.shape)
        constants = {**begun.constants, "places": found["places"]}  # others: which layers adapt
        return Factors({"v": found["v"]}, constants)

    def count(self, shape: tuple[int, int]) -> int:
        return self.rank * sum(shape)


def _check_places(places: Any, shape: tuple[int, int]) -> None:
    """Raise a ValueError unless these are places of a matrix; of a traced array, only the type."""
    if not np.issubdtype(places.dtype, np.integer):
        raise ValueError(f"SHIRA: shira_indices are {places.dtype}, not integers")
    if isinstance(places, np.ndarray):
        beyond = (places < 0) | (places >= np.array(shape)[:, None])
        if beyond.any():
            raise ValueError(f"SHIRA: shira_indices has {places[beyond][0]}, outside of {shape}")
