"""How factors start: drawn at random, or taken from the weight or from data; LoftQ; EVA's ranks.

The starts from data need what `lora_jax.base` describes in `base.seen`: the weight's gradient
(LoRA-GA, LoRA-One) or its inputs (EVA).

LoftQ makes up for what the quantisation of a weight has changed (Li et al. 2023, "LoftQ:
LoRA-Fine-Tuning-Aware Quantization for Large Language Models", arXiv 2310.08659, algorithm 1). From
A_0 = B_0 = 0 on, step t quantises Q_t = q(W - s A^T B) with the A and B of the step before, and
makes s A^T B the best approximation of W - Q_t of its rank. From the second step on, what is stored
depends on the rounding of an SVD: another machine may store a few numbers otherwise, which the
base's digest in an adapter's file shows. Where quantisation changes nothing, rows of A are drawn,
and those of B are zero, as in LoRA. PEFT takes that approximation for A^T B: there Q + s A^T B is
near W only where s is 1.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.base import Need, SeenGradient, SeenInputs, replicated
from lora_jax.messages import nearest
from lora_jax.methods.decompositions import (
    Triplets,
    minor_svd,
    qr,
    randomized_svd,
    truncated_svd,
)
from lora_jax.variant import Base, wide

Start = Callable[[Array, Base, int, float], tuple[Array, Array | None]]
"""`(key, base, rank, scale) -> (A (rank, in), B (rank, out))`; B is None if it starts at zero."""
GAMMA = 16.0
"""LoRA-GA's gamma, which divides the size of its factors."""
GAMMA_ONE = 128.0
"""LoRA-One's gamma, by the authors' settings for language models."""

LORA_GA = "lora_ga"
LORA_ONE = "lora_one"
FROM_DATA = (LORA_GA, LORA_ONE, "eva", "eva_rho_2")
"""Those that see data; EVA's rho may be any number from 1 on."""

_EVA = re.compile(r"eva(?:_rho_([1-9]\d*(?:\.\d+)?))?")
_FAST_PISSA = re.compile(r"pissa_niter_(\d+)")
_LOFTQ = re.compile(r"loftq(?:_iter_([1-9]\d*))?")


# -- drawn, or taken from the weight ---------------------------------------------------------------


def kaiming_uniform(key: Array, base: Base, rank: int, scale: float) -> tuple[Array, None]:
    """A ~ U(-1/sqrt(in), 1/sqrt(in)): what LoRA's authors' code and PEFT use (a = sqrt 5)."""
    inputs, bound = base.shape[0], base.shape[0] ** -0.5
    return jax.random.uniform(key, (rank, inputs), wide(base.dtype), -bound, bound), None


def gaussian(key: Array, base: Base, rank: int, scale: float) -> tuple[Array, None]:
    """A ~ N(0, 1/rank^2): PEFT's reading of LoRA's "random Gaussian initialization for A"."""
    return jax.random.normal(key, (rank, base.shape[0]), wide(base.dtype)) / rank, None


def normal(key: Array, base: Base, rank: int, scale: float) -> tuple[Array, None]:
    """A ~ N(0, 0.02^2): LoRA's authors' code for DeBERTa, and AdaLoRA."""
    return 0.02 * jax.random.normal(key, (rank, base.shape[0]), wide(base.dtype)), None


def orthogonal(key: Array, base: Base, rank: int, scale: float) -> tuple[Array, Array]:
    """A and B are random, in orthogonal halves of the rank, so that A^T B = 0, as in PEFT.

    datta0.github.io/posts/rethink-lora-init. The rank must be even.
    """
    dtype = wide(base.dtype)
    turn, left, right = jax.random.split(key, 3)
    q, _ = qr(jax.random.normal(turn, (rank, rank), dtype))
    with jax.default_matmul_precision("highest"):  # A^T B is zero to the rounding of these
        a = q[0::2].T @ jax.random.normal(left, (rank // 2, base.shape[0]), dtype)
        b = q[1::2].T @ jax.random.normal(right, (rank // 2, base.shape[1]), dtype)
    return a / 10, b / 10


def init_ab(key: Array, base: Base, rank: int, scale: float) -> tuple[Array, Array]:
    """Both A and B ~ U(-1/sqrt(in), 1/sqrt(in)), so that neither waits for the other to move.

    Li et al. 2025, "Beyond Zero Initialization", arXiv 2505.23194 (Init[AB]).
    """
    left, right = jax.random.split(key)
    shape, bound = (rank, base.shape[1]), base.shape[0] ** -0.5
    a, _ = kaiming_uniform(left, base, rank, scale)
    return a, jax.random.uniform(right, shape, wide(base.dtype), -bound, bound)


def pissa(
    key: Array, base: Base, rank: int, scale: float, iterations: int | None = None
) -> tuple[Array, Array]:
    """Leading singular vectors of W, each times the root of its singular value: s A^T B = W_r.

    Meng et al. 2024, "PiSSA", arXiv 2404.02948, equations 2 to 4 (with PEFT's division by s).

    Args:
      iterations: of a randomised SVD; None for one that is exact up to rounding.
    """
    matrix = base.dense().astype(wide(base.dtype))
    if iterations is None:
        return _split(truncated_svd(matrix, rank), scale)
    return _split(randomized_svd(key, matrix, rank, iterations), scale)


def milora(key: Array, base: Base, rank: int, scale: float) -> tuple[Array, Array]:
    """As PiSSA, with the smallest singular values of W in place of the largest.

    Wang et al. 2024, "MiLoRA", arXiv 2406.09044 (with PEFT's division by s for PiSSA). It takes a
    full SVD.
    """
    return _split(minor_svd(base.dense().astype(wide(base.dtype)), rank), scale)


def _split(triplets: Triplets, scale: float) -> tuple[Array, Array]:
    """A and B with s A^T B = U S V^T, each with the root of the singular values."""
    u, s, vt = triplets
    root = jnp.sqrt(s / scale)[:, None]
    return root * u.T, root * vt


def olora(key: Array, base: Base, rank: int, scale: float) -> tuple[Array, Array]:
    """W^T = Q R: A is the first rows of R, B the first columns of Q.

    Buyukakyuz 2024, "OLoRA", arXiv 2406.01775.
    """
    q, r = qr(replicated(base.dense()).astype(wide(base.dtype)).T)
    return r[:rank], q[:, :rank].T


# -- from data -------------------------------------------------------------------------------------


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


def _gradient(base: Base, name: str) -> SeenGradient:
    if not isinstance(base.seen, SeenGradient):
        raise ValueError(_MISSING.format(name, "gradients of the weight", "batches and loss"))
    return base.seen


_MISSING = "initialization '{}' needs the {}: give adapted.init {}"


def _from_data(name: str) -> Callable[..., tuple[Array, Array | None]] | None:
    """The function of an initialisation; None for one that sees no data."""
    named = {LORA_GA: lora_ga, LORA_ONE: lora_one}.get(name)
    return named or (eva if _EVA.fullmatch(name) else None)


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


# -- LoftQ -----------------------------------------------------------------------------------------


def loftq_steps(name: str) -> int:
    """How many steps the name of an initialisation asks for; 0 if it is another one."""
    found = _LOFTQ.fullmatch(name)
    return int(found[1] or 1) if found else 0


def loftq_to_store(base: Base, quantize: Callable[[Array], Array], rank: int, number: int) -> Array:
    """The dense (in, out) matrix to quantise after so many steps: W - s A^T B of the last but one.

    Args:
      base: W, not quantised.
      quantize: gives what a matrix stands for after it was stored.
    """
    matrix = stored = base.dense().astype(wide(base.dtype))
    for _ in range(number - 1):
        u, s, vt = truncated_svd(matrix - quantize(stored).astype(matrix.dtype), rank)
        with jax.default_matmul_precision("highest"):
            stored = matrix - (u * s[None]) @ vt
    return stored


def _residual(base: Base, rank: int) -> Triplets:
    """The leading singular triplets of W - Q, what the quantisation of a weight has changed."""
    if base.original is None:
        raise ValueError(
            "initialization 'loftq' is for quantised weights: name this one in quantize, or leave "
            "it out of the targets"
        )
    dtype = wide(base.dtype)
    return truncated_svd(base.original.dense().astype(dtype) - base.dense().astype(dtype), rank)


# -- by name ---------------------------------------------------------------------------------------


DRAWN: dict[str, Start] = {
    "kaiming_uniform": kaiming_uniform,
    "gaussian": gaussian,
    "normal": normal,
    "orthogonal": orthogonal,
}
"""Random starts, with A^T B = 0."""

SUBTRACTED: dict[str, Start] = {
    "init_ab": init_ab,
    "pissa": pissa,
    "milora": milora,
    "olora": olora,
}
"""Starts, at random or from the weight, whose A^T B is not zero and has to be subtracted."""


def validate(name: str, rank: int, alpha: float) -> None:
    """Raise a `ValueError` if an initialisation is unknown or cannot work."""
    found = {*DRAWN, *SUBTRACTED}
    families = _FAST_PISSA.fullmatch(name), _from_data(name), loftq_steps(name)
    if name not in found and not any(families):
        known = [*DRAWN, *SUBTRACTED, "pissa_niter_4", *FROM_DATA, "loftq", "loftq_iter_5"]
        raise ValueError(f"initialization '{name}' is unknown; nearest: {nearest(name, known)}")
    if name == "orthogonal" and rank % 2:
        raise ValueError(f"initialization 'orthogonal' needs an even rank, got {rank}")
    if name.startswith(("pissa", "milora", "loftq", LORA_ONE)) and alpha <= 0:
        raise ValueError(f"initialization '{name}' needs a positive alpha, got {alpha}")


def validate_fit(name: str, rank: int, shape: tuple[int, int]) -> None:
    """Raise a `ValueError` if a weight has fewer directions than an initialisation takes of it.

    What is drawn may have any rank.
    """
    if name in DRAWN or name == "init_ab":
        return
    twice = name == LORA_GA
    if (taken := 2 * rank if twice else rank) > min(shape):
        raise ValueError(
            f"initialization '{name}' takes {'2 * rank' if twice else 'rank'} = {taken} "
            f"directions, more than min(in, out) = {min(shape)} of {shape}"
        )


def moves_the_weight(name: str) -> bool:
    """Whether the starting factors change the weight, unless the change is subtracted."""
    return name not in DRAWN and not name.startswith("eva")


def needs_a_sum(name: str) -> bool:
    """Whether the start is meant for W' = W + s A^T B alone."""
    return name == LORA_ONE or loftq_steps(name) > 0


def differs(name: str) -> str:
    """Why the effect of the starting factors is kept, not subtracted; empty if there is none."""
    if name == LORA_ONE:
        return "it starts with a step against the gradient"
    return "it starts near the weight before its quantisation" if loftq_steps(name) else ""


def starting_factors(
    name: str, key: Array, base: Base, rank: int, scale: float
) -> tuple[Array, Array | None]:
    """A (rank, in) and B (rank, out) by the name of an initialisation; B is None if it is zero.

    Args:
      name: one of `DRAWN` or `SUBTRACTED`, `pissa_niter_<n>` (PiSSA by a randomised SVD), one of
        `FROM_DATA`, which need `base.seen`, or "loftq" or `loftq_iter_<n>`, which need
        `base.original`.
      scale: what A^T B is multiplied by.
    """
    if (start := _from_data(name)) is not None:
        return start(key, base, rank, scale)
    if loftq_steps(name):
        a, b = _split(_residual(base, rank), scale)
        drawn, _ = kaiming_uniform(key, base, rank, scale)  # where there is nothing to make up for
        return jnp.where((a == 0).all(axis=1, keepdims=True), drawn, a), b
    if found := _FAST_PISSA.fullmatch(name):
        return pissa(key, base, rank, scale, int(found[1]))
    return {**DRAWN, **SUBTRACTED}[name](key, base, rank, scale)


# -- places ----------------------------------------------------------------------------------------


def distinct_places(key: Array, shape: tuple[int, int], count: int) -> Array:
    """The places of distinct entries in the order of rows, (2, count): rows, and columns.

    One entry is drawn from each of `count` stretches of nearly equal length, into which the matrix
    is cut in the order of its rows. So nothing as large as the matrix is made, as a shuffle would.
    """
    bounds = np.arange(count + 1, dtype=np.int64) * (shape[0] * shape[1]) // count
    first, columns = (part.astype(np.int32) for part in np.divmod(bounds[:-1], shape[1]))
    lengths = np.diff(bounds).astype(np.int32)
    drawn = jax.random.uniform(key, (count,), jnp.float32) * lengths.astype(np.float32)
    columns = jnp.asarray(columns) + jnp.minimum(drawn.astype(jnp.int32), lengths - 1)
    return jnp.stack([jnp.asarray(first) + columns // shape[1], columns % shape[1]])
