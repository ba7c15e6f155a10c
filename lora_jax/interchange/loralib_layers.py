"""The factors of loralib's layers: `Linear`, `Embedding`, and `MergedLinear`, which has parts.

`MergedLinear` cuts the outputs of a layer into equal parts, such as GPT-2's queries, keys and
values, and adapts those that its `enable_lora` says. Its A (n r, in) and B (n out / parts, r) are
the factors of n parts, one below the other.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from lora_jax.methods.peft_joined import third
from lora_jax.methods.peft_lora import LINEAR
from lora_jax.peft_format import Peft

A, B = LINEAR["a"].name, LINEAR["b"].name
PAPER = "enable_lora=(True, False, True) is what the paper's GPT-2 has"


class Factors(NamedTuple):
    """What the shapes of a layer's A and B say."""

    rank: int
    enabled: tuple[bool, ...] | None
    """Which parts a MergedLinear adapts; None for a layer of one adapter."""

    def settings(self, alpha: float, parts: int | None) -> dict[str, Any]:
        """PEFT's settings of each parameter; one that holds all parts has the ranks of all."""
        several = sum(self.enabled) if self.enabled and parts is None else 1
        return {"r": several * self.rank, "lora_alpha": several * alpha}


def factors(
    a: tuple[int, ...],
    b: tuple[int, ...],
    weight: tuple[int, ...],
    numel: int,
    parts: int | None,
    enable_lora: Sequence[bool] | None,
) -> Factors:
    """What a layer is, from the shapes of its lora_A and lora_B.

    Args:
      weight, numel: the shape of one of its parameters here, for messages, and the number of
        entries of all together.
      parts: how many parameters hold it here, equal parts of its outputs; None if one holds all.
      enable_lora: a MergedLinear's, where it is known.

    Raises:
      ValueError: they do not fit the weight, or which parts they adapt is not known.
    """
    said = f"lora_A {a} and lora_B {b} do not fit a weight of shape {weight}"
    if len(a) != 2 or len(b) != 2 or 0 in (*a, *b) or numel % a[1]:
        raise ValueError(said)
    rank, outputs = b[1], numel // a[1]
    if a[0] == rank and b[0] == outputs:
        return Factors(rank, None)
    divided = parts or len(enable_lora or ())
    adapted = a[0] // rank
    if a[0] % rank or not divided or adapted > divided or b[0] * divided != outputs * adapted:
        also = "" if parts else "; of a MergedLinear, give enable_lora"
        raise ValueError(f"{said}{also if adapted > 1 else ''}")
    if enable_lora is None and adapted < divided:
        raise ValueError(f"{adapted} of {divided} parts are adapted, which is not said: {PAPER}")
    enabled = tuple(enable_lora or (True,) * divided)
    if len(enabled) != divided or sum(enabled) != adapted:
        raise ValueError(f"enable_lora={enabled}, and {adapted} of {divided} parts are adapted")
    return Factors(rank, enabled)


def of_part(peft: Peft, layer: Factors, part: int | None) -> Peft:
    """The adapter of one part of a layer, or of all in one; works on shapes, too."""
    if layer.enabled is None:
        return peft if part is None else third(peft, part, LINEAR)
    a, b, rank = peft.tensors[A], peft.tensors[B], layer.rank
    size = b.shape[0] * rank // a.shape[0]
    where = [n for n, enabled in enumerate(layer.enabled) if enabled]
    if part is not None:
        n = where.index(part)
        own = {A: a[n * rank : (n + 1) * rank], B: b[n * size : (n + 1) * size]}
        return peft._replace(tensors=own)
    whole: Any = jnp.zeros((size * len(layer.enabled), a.shape[0]), b.dtype)
    for n, at in enumerate(where):
        block = b[n * size : (n + 1) * size]
        whole = whole.at[at * size : (at + 1) * size, n * rank : (n + 1) * rank].set(block)
    return peft._replace(tensors={A: a, B: whole})
