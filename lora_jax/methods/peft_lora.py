"""LoRA, DoRA and AdaLoRA in PEFT's files: what settings and factors are called, and mean."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

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
ADALORA = "ADALORA"
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


# -- AdaLoRA ---------------------------------------------------------------------------------------


def adalora_written(settings: Settings, trainable: Mapping[str, Array], layouts: Layouts) -> Peft:
    """The adapter of one matrix; rows without an effect are left out, as in PEFT.

    `rank_pattern` says which.
    """
    kept = np.asarray(trainable["e"]) != 0
    kept = kept if kept.any() else np.arange(len(kept)) == 0  # PEFT cannot load rank 0
    own = {name: x[kept] for name, x in trainable.items()}
    whole = {**settings, "rank_pattern": {"{module}.lora_E": kept.tolist()}}
    return Peft(whole, stored(layouts, own))


def adalora_scale(settings: Settings) -> float:
    """What PEFT multiplies an update by; it takes the rank for an alpha that is not positive."""
    alpha = settings["lora_alpha"] if settings["lora_alpha"] > 0 else settings["init_r"]
    return alpha / (settings["init_r"] + 1e-5)


def adalora_sum(each: Sequence[Settings]) -> dict[str, Any]:
    """The settings of all rows of several adapters together, of scale 1, where they differ."""
    ranks = {name: sum(one[name] for one in each) for name in ("init_r", "target_r")}
    patterns = [one["rank_pattern"] for one in each]
    kept = {name: [*itertools.chain(*(x[name] for x in patterns))] for name in patterns[0]}
    return {**ranks, "lora_alpha": ranks["init_r"] + 1e-5, "rank_pattern": kept}


def adalora_rows(peft: Peft, layouts: Layouts, begun: Mapping[str, Array]) -> dict[str, Array]:
    """The trained factors from PEFT's tensors; rows that are not in the file are zero.

    Raises:
      ValueError: the rows of a tensor are not those that `rank_pattern` and `init_r` say, or it
        has another number of axes.
    """
    found, rank = loaded(layouts, peft.tensors), len(begun["e"])
    pattern = peft.settings.get("rank_pattern")
    left = sum(pattern) if pattern else rank
    # The comparison comes before any array of `rank` entries: a config may ask for a huge one.
    if len(pattern or ()) not in (0, rank) or any(len(x) != left for x in found.values()):
        sizes = {name: len(x) for name, x in found.items()}
        raise ValueError(f"{ADALORA}: {sizes} rows, {left} by rank_pattern and init_r")
    if any(len(found[name].shape) != len(x.shape) for name, x in begun.items() if name in found):
        raise ValueError("factors are matrices")
    places = np.flatnonzero(pattern) if pattern else np.arange(rank)
    return {
        name: jnp.zeros(x.shape, found[name].dtype).at[places].set(found[name])
        for name, x in begun.items()
    }
