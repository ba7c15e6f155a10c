"""The head of a classifier, apart from the adapters of its encoder."""

import dataclasses
from typing import Any

import jax

from experiments.runs.finished_run import FinishedRun
from lora_jax.transform.adapt import merged_parts
from lora_jax.transform.placement import Frozen, Trainable

HEADS = ("pooler", "classifier")
"""What begins the paths of a head's parameters."""


def averages(run: FinishedRun) -> bool:
    """Whether the head reads the mean of the tokens, for which transformers has no class."""
    return getattr(run.config.model, "pool", "") == "mean"


def mean_head(place: str, module: str = "classifier") -> str:
    """How logits are computed by a head that reads a mean.

    Args:
      place: what holds its tensors.
      module: what they are called.
    """
    return (
        f"transformers has no class for this head: AutoModel loads the encoder, and {place} the "
        "head; logits = (mean of last_hidden_state over unmasked tokens) @ "
        f"{module}.weight.T + {module}.bias"
    )


def without_head(
    trainable: Trainable, frozen: Frozen
) -> tuple[Trainable, Frozen, dict[str, jax.Array]]:
    """A run without its head, and the head's parameters by path, as the run computes with them.

    The head is whole: what is frozen is in it, and what is adapted is merged.
    """
    parts = merged_parts(trainable, frozen)
    paths = [path for path in parts.shapes if path.partition("/")[0] in HEADS]
    head = {path: parts.part(path, None) for path in paths}
    rest = tuple(each for each in frozen.spec.placements if each.use.path not in head)
    spec = dataclasses.replace(frozen.spec, placements=rest)
    before = list(frozen.spec.groups())
    kept = [before.index(group) for group in spec.groups()]
    mine: dict[str, Any] = {
        "adapters": _without(trainable["adapters"], head),
        "params": _without(trainable["params"], head),
    }
    if "shared" in trainable:
        shared = {new: trainable["shared"].get(str(old)) for new, old in enumerate(kept)}
        mine["shared"] = {str(new): each for new, each in shared.items() if each is not None}
    bare = dataclasses.replace(
        frozen,
        base=_without(frozen.base, head),
        constants=_without(frozen.constants, head),
        spec=spec,
        shared=tuple(frozen.shared[old] for old in kept) if frozen.shared else (),
    )
    return mine, bare, head


def _without(arrays: dict[str, Any], head: dict[str, Any]) -> dict[str, Any]:
    return {path: each for path, each in arrays.items() if path not in head}
