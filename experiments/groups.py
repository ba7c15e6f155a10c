"""Which trials can share one program, and the variants that such a program is made with."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import lora_jax as lj
from experiments import make
from experiments.traced import Outline
from lora_jax import records
from lora_jax.lowrank import LowRank
from lora_jax.program import same_when_masked

NAMES = ("experiment", "seed", "study", "start_from")
Settings = tuple[tuple[Any, lj.Variant], ...]
"""The variant of each target."""


def groups(configs: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """The trials, by their numbers, in groups for each of which one program is right.

    Trials of one model, data and kinds of variants are traced, wherever settings of their variants
    differ: they share a program if what is traced is equal, whatever the settings are called. So
    they may differ in what is in their factors and constants when these are made (a scale, an
    initialisation), not in what a variant reads while it computes.
    """
    found: dict[str, list[int]] = {}
    for number, config in enumerate(configs):
        found.setdefault(program_key(config), []).append(number)
    return [part for numbers in found.values() for part in _parts(numbers, configs)]


def program_key(config: Mapping[str, Any]) -> str:
    """What all trials of a program have in common but for the settings of variants, as a text.

    Raises:
      ValueError: an unknown variant, or a setting that it cannot have.
    """
    targets = make.make_targets(config["variant"], config["targets"])
    rest = {k: v for k, v in config.items() if k not in (*NAMES, "variant", "targets", "optimizer")}
    own = {
        "targets": [[repr(where), repr(type(variant))] for where, variant in targets.items()],
        "kinds": _kinds(list(targets.values())),
        # Of the optimiser, its numbers are inputs of the program (`make.make_optimizer`).
        "schedule": config["optimizer"]["schedule"],
        "numbers": sorted(make.make_hyper(config["optimizer"], _ANY)),
        "train": {k: v for k, v in config["train"].items() if k != "target_score"},
    }
    return records.canonical({**rest, **own})


_ANY = 2**62
"""Steps, of which only the names of the optimiser's numbers are wanted."""


def _kinds(variants: Sequence[lj.Variant]) -> list[int]:
    """Which targets have equal settings: they share arrays, and AdaLoRA's budget."""
    return [variants.index(each) for each in variants]


def _parts(numbers: list[int], configs: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Trials with one key in parts, by what is traced of them."""
    written = [records.canonical([configs[n]["variant"], configs[n]["targets"]]) for n in numbers]
    if len(set(written)) == 1:
        return [numbers]
    try:
        outline = Outline.of(dict(configs[numbers[0]]))
    except (ValueError, OSError, ImportError):  # of a model or data that no trial can have
        outline = None
    alike: dict[Settings, list[int]] = {}
    for number in numbers:
        alike.setdefault(_settings(configs[number], outline), []).append(number)
    if outline is None:
        return list(alike.values())
    possible, parts = [], []
    for settings in alike:
        (possible if outline.allows(dict(settings)) else parts).append(settings)
    parts = [*split(outline, possible), *([each] for each in parts)]
    return sorted(sorted(n for each in part for n in alike[each]) for part in parts)


def _settings(config: Mapping[str, Any], outline: Outline | None) -> Settings:
    if outline is not None:
        return tuple(make.make_run_targets(config, outline.steps).items())
    return tuple(make.make_targets(config["variant"], config["targets"]).items())


def split(outline: Outline, candidates: Sequence[Settings]) -> list[list[Settings]]:
    """Settings in parts, the programs of which are equal once there is room for all of a part."""
    if len(candidates) < 2:
        return [[each] for each in candidates]
    columns = zip(*candidates, strict=True)
    rows = [_rows([variant for _, variant in column]) for column in columns]
    programs: dict[Any, list[Settings]] = {}
    for number, each in enumerate(candidates):
        wide = tuple((p, held(v, most)) for (p, v), most in zip(each, rows, strict=True))
        own = [variant for _, variant in each]
        right = all(map(same_when_masked, own, (variant for _, variant in wide)))
        right &= _kinds(own) == _kinds([variant for _, variant in wide])
        program = outline.program(dict(wide)) if right else number
        programs.setdefault(program, []).append(each)
    if len(programs) == 1:
        return [list(candidates)]
    return [part for own in programs.values() for part in split(outline, own)]


def union(variants: Sequence[lj.Variant]) -> lj.Variant:
    """The variant of a program whose factors have room for those of all of these."""
    return held(variants[0], _rows(variants))


def held(variant: lj.Variant, rows: int | None) -> lj.Variant:
    """A variant of a rank in factors of so many rows, the rest of them masked, where it can."""
    if rows is None or not isinstance(variant, LowRank):
        return variant
    try:
        return dataclasses.replace(variant, max_rank=rows)
    except ValueError:
        return variant


def _rows(variants: Sequence[lj.Variant]) -> int | None:
    """The most rows of factors, where ranks differ."""
    ranks = {(v.rank, v.max_rank or v.rank) for v in variants if isinstance(v, LowRank)}
    return max(most for _, most in ranks) if len(ranks) > 1 else None
