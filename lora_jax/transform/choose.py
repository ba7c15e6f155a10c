"""Which weights are adapted, quantised, or trained in full, by the rules that `adapt` was given."""

from collections.abc import Sequence
from typing import Any

from lora_jax.partition import select_paths
from lora_jax.quantization.quantize import Storage
from lora_jax.transform import target_patterns
from lora_jax.transform.layer_bias import with_biases
from lora_jax.transform.placement import Placement, place, trains
from lora_jax.transform.target_patterns import Pattern, Rule
from lora_jax.uses import Uses


def choose(
    rules: Sequence[Rule],
    also_train: Sequence[str],
    storage: Sequence[tuple[Pattern, Storage]],
    uses: Uses,
) -> tuple[list[Placement], list[str]]:
    """The weights that are adapted or quantised, and the parameters that are trained in full."""
    also = select_paths(also_train, uses, "parameter")
    explicit = [rule for rule in rules if rule[0] != target_patterns.ALL_LINEAR]
    named = target_patterns.assign(explicit, uses) if explicit else {}
    if both := [path for path in also if path in named]:
        raise ValueError(f"'{both[0]}' is both a target and in also_train; choose one")
    assigned = {p: v for p, v in target_patterns.assign(rules, uses).items() if p not in also}
    adapting = {path: target_patterns.adapting(variant) for path, variant in assigned.items()}
    adapted = {path for path, variant in adapting.items() if variant}
    trained = [
        path
        for path, use in uses.items()
        if path not in adapted and (path in also or trains(use, rules, assigned))
    ]
    for path in trained:
        if not uses[path].is_real:
            raise ValueError(f"'{path}' cannot be trained: its dtype is {uses[path].dtype}")
    stored = _storages(storage, uses, trained)
    placements = [
        place(use, adapting.get(path), stored.get(path))
        for path, use in uses.items()
        if path in adapted or path in stored
    ]
    if not adapted and not trained:
        names = ", ".join(dict.fromkeys(type(v).__name__ for _, v in rules if v))
        why = f"{names} adapts nothing" if names else "all targets map to None"
        raise ValueError(f"nothing would train: {why}; name parameters in also_train")
    return with_biases(placements, uses), trained


def _storages(
    rules: Sequence[tuple[Pattern, Storage]], uses: Uses, trained: Sequence[str]
) -> dict[str, Storage]:
    """The storage of each quantised weight; parameters trained in full are left out."""
    found: dict[str, Any] = dict(target_patterns.assign(list[Any](rules), uses))
    explicit: list[Any] = [rule for rule in rules if rule[0] != target_patterns.ALL_LINEAR]
    for path in target_patterns.assign(explicit, uses) if explicit else {}:
        if path in trained:
            raise ValueError(f"'{path}' is trained in full, and cannot be quantised")
    for path, storage in found.items():
        if isinstance(storage, tuple):
            raise ValueError(
                f"'{path}': the layers of a stacked weight must be stored in the same way"
            )
        if not uses[path].is_real:
            raise ValueError(f"'{path}' cannot be quantised: its dtype is {uses[path].dtype}")
    return {path: storage for path, storage in found.items() if path not in trained}
