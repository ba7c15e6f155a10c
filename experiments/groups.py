"""Which trials can share one program, and the variants that such a program is made with."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import lora_jax as lj
from experiments import make
from lora_jax import records

NUMBERS = ("learning_rate", "weight_decay", "warmup_ratio", "warmup_steps", "clip")
NUMBERS += ("b1", "b2", "eps", "head_learning_rate")
"""Of an optimiser, what its program takes as arguments."""

FREE = ("alpha", "scale", "dropout", "learning_rate_ratio", "d_init")
FREE += ("target_rank", "t_init", "t_final", "delta_t", "beta1", "beta2", "orthogonality")
"""Of a variant, what is in its factors, constants and shared arrays once these are made."""

NAMES = ("experiment", "seed", "study", "start_from")


def groups(configs: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """The trials, by their numbers, in groups that share a model, data, structure and shapes."""
    found: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        found.setdefault(program_key(config), []).append(number)
    return [part for numbers in found.values() for part in _unconfused(numbers, configs)]


def _unconfused(numbers: list[int], configs: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Trials with one key, apart where a program of all would take two kinds of targets for one."""
    made = [_variants(configs[number]) for number in numbers]
    wide = [union(of_one_target) for of_one_target in zip(*made, strict=True)]
    if _kinds(wide) == _kinds(made[0]):
        return [numbers]
    apart: dict[tuple[lj.Variant, ...], list[int]] = {}
    for number, settings in zip(numbers, made, strict=True):
        apart.setdefault(settings, []).append(number)
    return list(apart.values())


def _variants(config: Mapping[str, Any]) -> tuple[lj.Variant, ...]:
    return tuple(make.make_targets(config["variant"], config["targets"]).values())


def _kinds(variants: Sequence[lj.Variant]) -> list[int]:
    """Which targets have equal settings: they share arrays, and AdaLoRA's budget."""
    return [variants.index(each) for each in variants]


def program_key(config: Mapping[str, Any]) -> str:
    """What trials of one program have in common, as a text.

    Raises:
      ValueError: an unknown variant, or a setting that it cannot have.
    """
    targets = make.make_targets(config["variant"], config["targets"])
    optimizer = {k: v for k, v in config["optimizer"].items() if k not in NUMBERS}
    optimizer["head"] = config["optimizer"]["head_learning_rate"] is not None
    rest = {k: v for k, v in config.items() if k not in (*NAMES, "variant", "targets", "optimizer")}
    structure = [[repr(where), *_structure(variant)] for where, variant in targets.items()]
    train = {k: v for k, v in config["train"].items() if k != "target_score"}
    own = {"targets": structure, "optimizer": optimizer, "train": train}
    own["kinds"] = _kinds(list(targets.values()))
    own["schedule of the run"] = make.takes_steps_of_run(config["variant"])
    return records.canonical({**rest, **own})


def _structure(variant: lj.Variant) -> list[Any]:
    """The class of a variant, and its settings that a program is compiled for."""
    free = (*FREE, "rank", "max_rank") if _masks_ranks(variant) else FREE
    settings = {
        each.name: getattr(variant, each.name)
        for each in dataclasses.fields(variant)
        if each.name not in free
    }
    return [type(variant).__module__, type(variant).__name__, settings]


def union(variants: Sequence[lj.Variant]) -> lj.Variant:
    """The variant of a program in whose structure the factors of all of these can be held."""
    first = variants[0]
    if all(each == first for each in variants):
        return first
    changes: dict[str, Any] = {}
    if _masks_ranks(first) and len({_ranks(each) for each in variants}) > 1:
        rows = max(max(_ranks(each)) for each in variants)
        changes |= {"rank": rows, "max_rank": rows}
    for name, neutral in (("dropout", 0.0), ("learning_rate_ratio", 1.0)):
        values = [getattr(each, name, neutral) for each in variants]
        if others := [value for value in values if value != neutral]:
            changes[name] = others[0]
    return dataclasses.replace(first, **changes)


def _ranks(variant: Any) -> tuple[int, int]:
    return variant.rank, variant.max_rank or variant.rank


def _masks_ranks(variant: lj.Variant) -> bool:
    """Whether rows beyond the rank can be masked, so that the rank itself is an array's content."""
    if not hasattr(variant, "max_rank"):
        return False
    try:
        dataclasses.replace(variant, max_rank=max(_ranks(variant)))  # type: ignore[call-arg]
    except ValueError:
        return False
    return True
