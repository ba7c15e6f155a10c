"""LoftQ: a start that makes up for what the quantisation of a weight has changed.

Li et al. 2023, "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models",
arXiv 2310.08659, algorithm 1. From A_0 = B_0 = 0 on, step t quantises Q_t = q(W - s A^T B) with the
A and B of the step before, and makes s A^T B the best approximation of W - Q_t of its rank.

From the second step on, what is stored depends on the rounding of an SVD: another machine may store
a few numbers otherwise, which the base's digest in an adapter's file shows.

Where quantisation changes nothing, rows of A are drawn, and those of B are zero, as in LoRA.

Difference from PEFT, which takes that approximation for A^T B: there Q + s A^T B is near W only
where s is 1.
"""

import re
from collections.abc import Callable

import jax
from jax import Array

from lora_jax.methods.truncated_svd import Triplets, truncated_svd
from lora_jax.variant import Base, wide

_NAME = re.compile(r"loftq(?:_iter_([1-9]\d*))?")


def steps(name: str) -> int:
    """How many steps the name of an initialisation asks for; 0 if it is another one."""
    found = _NAME.fullmatch(name)
    return int(found[1] or 1) if found else 0


def to_store(base: Base, quantize: Callable[[Array], Array], rank: int, number: int) -> Array:
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


def residual(base: Base, rank: int) -> Triplets:
    """The leading singular triplets of W - Q, what the quantisation of a weight has changed."""
    if base.original is None:
        raise ValueError(
            "initialization 'loftq' is for quantised weights: name this one in quantize, or leave "
            "it out of the targets"
        )
    dtype = wide(base.dtype)
    return truncated_svd(base.original.dense().astype(dtype) - base.dense().astype(dtype), rank)
