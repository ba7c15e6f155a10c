"""How the factors of the A/B methods start: drawn at random, or taken from the weight or data."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from lora_jax.explicit_sharding import replicated
from lora_jax.methods import from_data, loftq
from lora_jax.methods.factorizations import qr
from lora_jax.methods.truncated_svd import Triplets, minor_svd, randomized_svd, truncated_svd
from lora_jax.suggest import nearest
from lora_jax.variant import Base, wide

Start = Callable[[Array, Base, int, float], tuple[Array, Array | None]]
"""`(key, base, rank, scale) -> (A (rank, in), B (rank, out))`; B is None if it starts at zero."""


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

_FAST_PISSA = re.compile(r"pissa_niter_(\d+)")


def validate(name: str, rank: int, alpha: float) -> None:
    """Raise a `ValueError` if an initialisation is unknown or cannot work."""
    found = {*DRAWN, *SUBTRACTED}
    families = _FAST_PISSA.fullmatch(name), from_data.start(name), loftq.steps(name)
    if name not in found and not any(families):
        known = [*DRAWN, *SUBTRACTED, "pissa_niter_4", *from_data.NAMES, "loftq", "loftq_iter_5"]
        raise ValueError(f"initialization '{name}' is unknown; nearest: {nearest(name, known)}")
    if name == "orthogonal" and rank % 2:
        raise ValueError(f"initialization 'orthogonal' needs an even rank, got {rank}")
    if name.startswith(("pissa", "milora", "loftq", from_data.LORA_ONE)) and alpha <= 0:
        raise ValueError(f"initialization '{name}' needs a positive alpha, got {alpha}")


def validate_fit(name: str, rank: int, shape: tuple[int, int]) -> None:
    """Raise a `ValueError` if a weight has fewer directions than an initialisation takes of it.

    What is drawn may have any rank.
    """
    if name in DRAWN or name == "init_ab":
        return
    twice = name == from_data.LORA_GA
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
    return name == from_data.LORA_ONE or loftq.steps(name) > 0


def differs(name: str) -> str:
    """Why the effect of the starting factors is kept, not subtracted; empty if there is none."""
    if name == from_data.LORA_ONE:
        return "it starts with a step against the gradient"
    return "it starts near the weight before its quantisation" if loftq.steps(name) else ""


def starting_factors(
    name: str, key: Array, base: Base, rank: int, scale: float
) -> tuple[Array, Array | None]:
    """A (rank, in) and B (rank, out) by the name of an initialisation; B is None if it is zero.

    Args:
      name: one of `DRAWN` or `SUBTRACTED`, `pissa_niter_<n>` (PiSSA by a randomised SVD), one of
        `from_data.NAMES`, which need `base.seen`, or "loftq" or `loftq_iter_<n>`, which need
        `base.original`.
      scale: what A^T B is multiplied by.
    """
    if (start := from_data.start(name)) is not None:
        return start(key, base, rank, scale)
    if loftq.steps(name):
        a, b = _split(loftq.residual(base, rank), scale)
        drawn, _ = kaiming_uniform(key, base, rank, scale)  # where there is nothing to make up for
        return jnp.where((a == 0).all(axis=1, keepdims=True), drawn, a), b
    if found := _FAST_PISSA.fullmatch(name):
        return pissa(key, base, rank, scale, int(found[1]))
    return {**DRAWN, **SUBTRACTED}[name](key, base, rank, scale)
