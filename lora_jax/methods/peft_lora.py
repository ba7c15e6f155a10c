"""LoRA and DoRA in PEFT's files: what their settings and factors are called, and what they mean."""

from typing import Any

import jax.numpy as jnp

from lora_jax.files.arrays import to_host
from lora_jax.peft_format import (
    Layouts,
    Peft,
    Settings,
    dropout_of,
    loaded,
    number,
    same,
    settings_of,
    stored,
    transposed,
)
from lora_jax.variant import Factors

LINEAR: Layouts = {
    "a": same("lora_A.weight", "all"),
    "b": transposed("lora_B.weight", 0, 0.0),
    "m": same("lora_magnitude_vector", 0),
}
EMBEDDING: Layouts = {
    "a": same("lora_embedding_A"),
    "b": transposed("lora_embedding_B"),
    "m": same("lora_magnitude_vector"),
}
HEAD = {"lora_embedding_A": "lora_B.weight", "lora_embedding_B": "lora_A.weight"}
"""What the adapter of a head has, that of its table transposed, by the names of the table's."""
BIAS = "lora_B.bias"
"""What `lora_bias=True` adds to the bias of the layer, times the scale; it is read only."""
STARTS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
"""Values of `init_lora_weights` that leave the base as it is; A and B are in the file."""
SUBTRACTED = ("pissa", "olora")
"""Those that take the start from the base, and come out the same when they are made again."""


def as_peft(a: Any, b: Any, scale: float, factors: Factors, lookup: bool, **also: Any) -> Peft:
    """W + scale A^T B in PEFT's LoRA, for A (rank, in) and B (rank, out).

    `use_rslora` is never written: some servers do not read it. The scale is alpha / rank.
    """
    a, b = to_host(a), to_host(b)
    settings = {
        "peft_type": "LORA",
        "r": len(a),
        "lora_alpha": number(scale * len(a)),
        "lora_dropout": dropout_of(factors.constants),
        "rank_pattern": {},
        "alpha_pattern": {},
        "init_lora_weights": True,
        "fan_in_fan_out": False,
        "bias": "none",
        "loftq_config": {},  # a null makes older readers fail
    }
    layouts = EMBEDDING if lookup else LINEAR
    magnitude = {"m": to_host(factors.trainable["m"])} if "m" in factors.trainable else {}
    return Peft({**settings, **also}, stored(layouts, {"a": a, "b": b, **magnitude}))


def fields_of(config: Settings, dora: bool) -> dict[str, Any] | None:
    """The fields of `LowRank` that a config means; None if it is not of LoRA (of DoRA)."""
    known = settings_of(
        config,
        "LORA",
        r=8,
        lora_alpha=8.0,
        lora_dropout=0.0,
        use_rslora=False,
        use_dora=False,
        lora_bias=False,
        init_lora_weights=None,
    )
    if known is None or known["use_dora"] != dora:
        return None
    start = known["init_lora_weights"]
    if start not in STARTS + SUBTRACTED:
        raise ValueError(
            f"init_lora_weights={start!r} replaces the base by one that the file does not hold; "
            "convert it with PEFT: save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    return {
        "rank": known["r"],
        "alpha": known["lora_alpha"],
        "dropout": known["lora_dropout"],
        "scale": "alpha/sqrt(rank)" if known["use_rslora"] else "alpha/rank",
        "initialization": start if start in SUBTRACTED else "kaiming_uniform",
    }


def factors_from(peft: Peft, begun: Factors, rank: int) -> Factors:
    """The factors from PEFT's tensors; rows beyond the rank are zero."""
    tensors = {n: x for n, x in peft.tensors.items() if n != BIAS}
    layouts = EMBEDDING if "lora_embedding_A" in tensors else LINEAR
    return begun._replace(trainable=padded(loaded(layouts, tensors), begun, rank))


def padded(factors: dict[str, Any], begun: Factors, rank: int) -> dict[str, Any]:
    """Factors of `rank` rows, with as many as `begun` has: layers of a stack may differ.

    Raises:
      ValueError: they have not `rank` rows, which the scale depends on.
    """
    found = dict(factors)
    for name in ("a", "b", "c", "d"):
        if name in found and name in begun.trainable:
            if len(found[name].shape) != 2:
                raise ValueError("factors are matrices")
            if (rows := found[name].shape[0]) != rank:
                raise ValueError(f"factors have {rows} rows, and the config says r={rank}")
            if missing := begun.trainable[name].shape[0] - rows:
                found[name] = jnp.pad(found[name], ((0, missing), (0, 0)))
    return found
