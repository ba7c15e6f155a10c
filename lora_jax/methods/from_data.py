"""Starting factors from data: a weight's gradient (LoRA-GA, LoRA-One), or its inputs (EVA)."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.statistics import Need, SeenGradient, SeenInputs
from lora_jax.variant import Base

GAMMA = 16.0
"""LoRA-GA's gamma, which divides the size of its factors."""
GAMMA_ONE = 128.0
"""LoRA-One's gamma, by the authors' settings for language models."""

LORA_GA = "lora_ga"
LORA_ONE = "lora_one"
NAMES = (LORA_GA, LORA_ONE, "eva", "eva_rho_2")
"""The initialisations here; EVA's rho may be any number from 1 on."""

_EVA = re.compile(r"eva(?:_rho_([1-9]\d*(?:\.\d+)?))?")


def lora_ga(key: Array, base: Base, rank: int, scale: float) -> tuple[Array, Array]:
    """A from the leading singular vectors of dL/dW on its inputs, B from the next ones on outputs.

    Wang et al. 2024, "LoRA-GA", arXiv 2407.05000, algorithm 1: A0 = c U_{1..r}^T and
    B0 = c V_{r+1..2r}^T, with dL/dW = U S V^T (in, out) and c = out^(1/4) / sqrt(gamma).
    """
    seen = _gradient(base, LORA_GA)
    size = base.shape[1] ** 0.25 / GAMMA**0.5
    return size * seen.left[:rank], size * seen.right[rank : 2 * rank]


def lora_one(key: Array, base: Base, rank: int, scale: float) -> tuple[Array, Array]:
    """A^T B is a step against the best approximation of dL/dW of this rank.

    Zhang et al. 2025, "LoRA-One", arXiv 2502.01235, algorithm 1, with the authors' code's size:
    A^T B = -U_r S_r V_r^T / (gamma S_1), with dL/dW = U S V^T, each factor with the root of S.
    """
    seen = _gradient(base, LORA_ONE)
    largest = jnp.where(seen.values[0] > 0, seen.values[0], 1)  # a layer may have no gradient
    root = jnp.sqrt(seen.values[:rank] / (GAMMA_ONE * largest))[:, None]
    return root * seen.left[:rank], -root * seen.right[:rank]


def eva(key: Array, base: Base, rank: int, scale: float) -> tuple[Array, None]:
    """A is the leading principal components of the weight's inputs, and B zero.

    Paischer et al. 2024, "EVA", arXiv 2410.07170, section 3.
    """
    seen = base.seen
    if not isinstance(seen, SeenInputs):
        raise ValueError(_MISSING.format("eva", "inputs of the weight", "batches"))
    return seen.directions[:rank], None


def start(name: str) -> Callable[..., tuple[Array, Array | None]] | None:
    """The function of an initialisation; None for one that sees no data."""
    if name == LORA_GA:
        return lora_ga
    if name == LORA_ONE:
        return lora_one
    return eva if _EVA.fullmatch(name) else None


def need(name: str, rank: int) -> Need | None:
    """What an initialisation has to see of a weight; None for one that sees no data."""
    if name in (LORA_GA, LORA_ONE):  # twice what LoRA-One takes, which is more exact so
        return Need("gradient", 2 * rank)
    if found := _EVA.fullmatch(name):
        return Need("inputs", round(rank * float(found[1] or 1)))
    return None


def divides(name: str) -> bool:
    """Whether an initialisation divides ranks among the matrices (EVA with a rho)."""
    return name.startswith("eva_rho_")


def divide(seen: Sequence[Any], rank: int, most: Sequence[int]) -> list[int]:
    """EVA's ranks of some matrices, which together are `rank` for each on average.

    A matrix gets a rank for each of its components that is among those that explain the greatest
    shares of the variance of their own matrix's inputs; of equal ones, the first count.

    Args:
      seen: the `SeenInputs` of each matrix, with as many components as its rank may be (rho times
        `rank`).
      most: the greatest rank of each matrix.
    """
    shares = [
        np.asarray(each.variances)[:limit] / np.asarray(each.variance)
        for each, limit in zip(seen, most, strict=True)
    ]
    owners = np.repeat(np.arange(len(shares)), [len(each) for each in shares])
    chosen = np.argsort(-np.concatenate(shares), kind="stable")[: rank * len(shares)]
    return np.bincount(owners[chosen], minlength=len(shares)).tolist()


def _gradient(base: Base, name: str) -> SeenGradient:
    if not isinstance(base.seen, SeenGradient):
        raise ValueError(_MISSING.format(name, "gradients of the weight", "batches and loss"))
    return base.seen


_MISSING = "initialization '{}' needs the {}: give adapted.init {}"
