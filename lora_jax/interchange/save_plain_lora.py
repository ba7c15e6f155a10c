"""Write any adapter as plain LoRA, in the one form that all servers compute alike.

PEFT's format has more than servers read: vLLM drops ranks and alphas of single modules, SGLang
takes alpha / rank for rsLoRA's scale, llama.cpp takes the rank of each tensor. Here every scale is
a part of B, `lora_alpha` is `r`, and all matrices have that rank, filled up with zeros.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.arithmetic.low_rank import of_rank
from lora_jax.arithmetic.updates import update_of, widened
from lora_jax.interchange.matrices import Matrix, by_module, matrices
from lora_jax.interchange.names import Names
from lora_jax.interchange.peft_folder import MODEL, write_folder
from lora_jax.methods.peft_lora import as_peft
from lora_jax.peft_format import Peft
from lora_jax.transform.placement import Frozen, Trainable
from lora_jax.variant import Factors

SERVED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The modules that both vLLM and SGLang adapt."""
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `--max-lora-rank` may be."""


class PlainLora(NamedTuple):
    """What was written."""

    folder: Path
    rank: int
    max_lora_rank: int
    """The least `--max-lora-rank` with which vLLM loads it; its default is 16."""
    errors: Mapping[str, float]
    """By module, how far a truncated update is from the whole one: the ratio of their norms."""


def save_plain_lora(
    folder: str | os.PathLike,
    trainable: Trainable,
    frozen: Frozen,
    names: Names,
    *,
    svd_rank: int | None = None,
    base_model: str | None = None,
    dtype: Any = None,
    served: tuple[str, ...] | None = SERVED,
) -> PlainLora:
    """Write a folder that vLLM, SGLang, llama.cpp's converter and PEFT load, and compute alike.

    Args:
      names, base_model, dtype: as for `save_peft`.
      svd_rank: cut every update of a higher rank to its leading directions; the errors are in the
        result. Without it, a method that is no plain LoRA is refused.
      served: the last names of modules that the server adapts; None allows all.

    Raises:
      ValueError: a method, a module or a trained parameter that servers do not have, or a rank that
        none loads. Nothing is written.
    """
    if trainable["params"]:
        raise ValueError(
            f"'{min(trainable['params'])}' trains in full, and servers take adapters alone: merge "
            "the weights (--as=merged)"
        )
    if biased := next((each for each in frozen.spec.adapted if each.bias), None):
        raise ValueError(
            f"'{biased.bias}' is adapted with '{biased.use.path}', and plain LoRA has no biases: "
            "merge the weights (--as=merged)"
        )
    stored: list[tuple[Matrix, Peft]] = []
    errors: dict[str, float] = {}
    for each in matrices(trainable, frozen, names):
        if each.lookup or (served and each.module.rpartition(".")[2] not in served):
            known = ", ".join(served or ())
            raise ValueError(
                f"'{each.module}' is not served: {known} are; merge the weights (--as=merged)"
            )
        a, b, error = _factors(each, svd_rank)
        stored.append((each, as_peft(a, b, 1.0, Factors({}, {}), False)))
        if svd_rank is not None:
            errors[each.module] = max(error, errors.get(each.module, 0.0))
    found = by_module(stored)
    rank = max(peft.settings["r"] for peft in found.values())
    limits = [each for each in MAX_LORA_RANKS if each >= rank]
    if not limits:
        raise ValueError(
            f"rank {rank} exceeds {MAX_LORA_RANKS[-1]}, the most that is served; "
            "merge the weights (--as=merged), or give svd_rank"
        )
    first = next(iter(found.values()))
    config = {
        **{key: value for key, value in first.settings.items() if not key.endswith("_pattern")},
        **{"r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "task_type": "CAUSAL_LM"},
        **{"base_model_name_or_path": base_model, "inference_mode": True},
        "target_modules": sorted({module.rpartition(".")[2] for module in found}),
    }
    tensors = {
        f"{MODEL}{module}.{name}": _padded(x, 0 if "lora_A" in name else 1, rank)
        for module, peft in found.items()
        for name, x in peft.tensors.items()
    }
    return PlainLora(write_folder(folder, config, tensors, dtype), rank, limits[0], errors)


def _factors(each: Matrix, svd_rank: int | None) -> tuple[Any, Any, float]:
    """A (rank, in) and B (rank, out) of the update, and the relative error of what is cut off."""
    both = each.variant.as_lora(each.base, each.factors)
    if both is not None and (svd_rank is None or len(both[0]) <= svd_rank):
        return *both, 0.0
    if svd_rank is None:
        title = each.variant.title or type(each.variant).__name__
        raise ValueError(
            f"'{each.path}': {title} is no plain LoRA, which is all that servers take; "
            "merge the weights (--as=merged), or give svd_rank"
        )
    with jax.enable_x64(True):
        update = update_of(each.variant, each.base.astype(jnp.float64), widened(each.factors))
        cut, error = of_rank(update, min(svd_rank, *each.base.shape))
    dtype = jnp.result_type(*jax.tree.leaves(each.factors.trainable))
    return cut.a.astype(dtype), cut.b.astype(dtype), error


def _padded(x: np.ndarray, axis: int, rank: int) -> np.ndarray:
    missing = [(0, 0), (0, 0)]
    missing[axis] = (0, rank - x.shape[axis])
    return np.pad(x, missing)
