"""AdaLoRA in Hugging Face PEFT: fields of its config, and files without the rows of no effect."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from lora_jax.methods.checks import MOST
from lora_jax.peft_format import Layouts, Peft, Settings, loaded, quoted, settings_of, stored

KIND = "ADALORA"


def written(settings: Settings, trainable: Mapping[str, Array], layouts: Layouts) -> Peft:
    """The adapter of one matrix; rows without an effect are left out, as in PEFT.

    `rank_pattern` says which.
    """
    kept = np.asarray(trainable["e"]) != 0
    kept = kept if kept.any() else np.arange(len(kept)) == 0  # PEFT cannot load rank 0
    own = {name: x[kept] for name, x in trainable.items()}
    whole = {
        **{"peft_type": KIND, **settings},
        **{"rank_pattern": {"{module}.lora_E": kept.tolist()}, "loftq_config": {}},
        **{"fan_in_fan_out": False, "bias": "none"},
    }
    return Peft(whole, stored(layouts, own))


def scale(settings: Settings) -> float:
    """What PEFT multiplies an update by."""
    return alpha(settings) / (settings["init_r"] + 1e-5)


def alpha(settings: Settings) -> float:
    """PEFT's alpha, which takes the rank for one that is not positive."""
    return settings["lora_alpha"] if settings["lora_alpha"] > 0 else float(settings["init_r"])


def summed(each: Sequence[Settings]) -> dict[str, Any]:
    """The settings of all rows of several adapters together, of scale 1, where they differ."""
    ranks = {name: sum(one[name] for one in each) for name in ("init_r", "target_r")}
    patterns = [one["rank_pattern"] for one in each]
    kept = {name: [*itertools.chain(*(x[name] for x in patterns))] for name in patterns[0]}
    return {**ranks, "lora_alpha": ranks["init_r"] + 1e-5, "rank_pattern": kept}


def settings(config: Settings) -> dict[str, Any] | None:
    """A config of PEFT as fields of AdaLoRA; None if it is another method's."""
    numbers = {"init_r": 12, "target_r": 8, "tinit": 0, "tfinal": 0, "deltaT": 1}
    reals = {"lora_alpha": 8.0, "lora_dropout": 0.0, "beta1": 0.85, "beta2": 0.85}
    inherited = {"r": None, "use_rslora": None, "init_lora_weights": None, "total_step": None}
    known = settings_of(config, KIND, orth_reg_weight=0.5, **numbers, **reals, **inherited)
    if known is None:
        return None
    for name in (*numbers, "total_step"):
        if isinstance(known[name], int) and known[name] > MOST:
            raise ValueError(f"{KIND}: {name} must be at most {MOST:,}, got {quoted(known[name])}")
    return {
        "rank": known["init_r"],
        "target_rank": min(known["target_r"], known["init_r"]),
        "alpha": alpha(known),
        "dropout": known["lora_dropout"],
        "total_steps": known["total_step"] or max(1000, known["tinit"] + known["tfinal"] + 1),
        "t_init": known["tinit"],
        "t_final": known["tfinal"],
        "delta_t": known["deltaT"],
        "beta1": known["beta1"],
        "beta2": known["beta2"],
        "orthogonality": known["orth_reg_weight"],
    }


def rows(peft: Peft, layouts: Layouts, begun: Mapping[str, Array]) -> dict[str, Array]:
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
        raise ValueError(f"{KIND}: {sizes} rows, {left} by rank_pattern and init_r")
    if any(len(found[name].shape) != len(x.shape) for name, x in begun.items() if name in found):
        raise ValueError("factors are matrices")
    places = np.flatnonzero(pattern) if pattern else np.arange(rank)
    return {
        name: jnp.zeros(x.shape, found[name].dtype).at[places].set(found[name])
        for name, x in begun.items()
    }
