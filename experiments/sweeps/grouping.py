"""Which trials can share one program, and the variants that such a program is made with."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lora_jax as lj
from experiments.setup import from_config
from experiments.sweeps.traced_step import Outline
from lora_jax.files.canonical_json import canonical
from lora_jax.methods.lowrank import LowRank
from lora_jax.training.masking import same_when_masked

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
    targets = from_config.make_targets(config["variant"], config["targets"])
    rest = {k: v for k, v in config.items() if k not in (*NAMES, "variant", "targets", "optimizer")}
    own = {
        "targets": [[repr(where), repr(type(variant))] for where, variant in targets.items()],
        "kinds": _kinds(list(targets.values())),
        # Of the optimiser, its numbers are inputs of the program (`make.make_optimizer`).
        "schedule": config["optimizer"]["schedule"],
        "numbers": sorted(from_config.make_hyper(config["optimizer"], _ANY)),
        "train": {k: v for k, v in config["train"].items() if k != "target_score"},
    }
    return canonical({**rest, **own})


_ANY = 2**62
"""Steps, of which only the names of the optimiser's numbers are wanted."""


def _kinds(variants: Sequence[lj.Variant]) -> list[int]:
    """Which targets have equal settings: they share arrays, and AdaLoRA's budget."""
    return [variants.index(each) for each in variants]


def _parts(numbers: list[int], configs: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Trials with one key in parts, by what is traced of them."""
    alike: dict[str, list[int]] = {}  # by text: to Python, 1 is 1.0 and True
    for number in numbers:
        written = [configs[number][section] for section in ("variant", "targets")]
        alike.setdefault(canonical(written), []).append(number)
    if len(alike) == 1:
        return [numbers]
    same = list(alike.values())
    try:
        outline = Outline.of(dict(configs[numbers[0]]))
        candidates = [_settings(configs[each[0]], outline) for each in same]
        parts = split(outline, candidates)
    except Exception:  # of a model, or of texts, that no trial can have: its own run will say it
        return same
    return sorted(sorted(n for place in part for n in same[place]) for part in parts)


def _settings(config: Mapping[str, Any], outline: Outline) -> Settings:
    return tuple(from_config.make_run_targets(dict(config), outline.steps).items())


def split(outline: Outline, candidates: Sequence[Settings]) -> list[list[int]]:
    """Settings, by their numbers, in parts whose programs are equal once there is room for all.

    What cannot be traced is a part by itself, and its own run will say why.
    """
    matrices: list[Any] = [outline.smallest_matrix(dict(each)) for each in candidates]
    wrong = [[n] for n, matrix in enumerate(matrices) if matrix is None]
    right = [n for n, matrix in enumerate(matrices) if matrix is not None]

    places = _places(candidates)

    @functools.cache
    def program(n: int, rows: tuple[int | None, ...]) -> Any:
        # Made anew, as a user's code may keep elsewhere what was made last.
        own = [_anew(variant) for _, variant in candidates[n]]
        wide = [held(variant, most) for variant, most in zip(own, rows, strict=True)]
        good = _kinds(own) == _kinds(wide) and all(
            narrow is each or same_when_masked(narrow, each, matrices[n])
            for narrow, each in zip(own, wide, strict=True)
        )
        where = [pattern for pattern, _ in candidates[n]]
        found = outline.program(dict(zip(where, wide, strict=True))) if good else None
        return None if found is None else (found, places[n])

    return [*_split(program, candidates, right), *wrong]


def _split(
    program: Callable[[int, tuple[int | None, ...]], Any],
    candidates: Sequence[Settings],
    numbers: list[int],
) -> list[list[int]]:
    """Candidates, by their `numbers`, in parts.

    Args:
      program: what is traced of one whose factors have so many rows, None where they are its own.
    """
    if len(numbers) < 2:
        return [numbers] if numbers else []
    columns = zip(*(candidates[n] for n in numbers), strict=True)
    rows = tuple(_rows([variant for _, variant in column]) for column in columns)
    parts: dict[Any, list[int]] = {}
    for n in numbers:
        found = program(n, rows)
        parts.setdefault(n if found is None else found, []).append(n)
    if len(parts) == 1:
        return [numbers]
    return [part for own in parts.values() for part in _split(program, candidates, own)]


def _places(candidates: Sequence[Settings]) -> list[tuple[int, ...]]:
    """Numbers that tell apart what is equal to Python and written differently.

    The caches of Python, and of `jax.jit` where it wraps a method, take equal variants for one
    another: of the second one they give what was traced of the first, where 1 stands for 1.0, or a
    user's field does not count in `==`.
    """
    writings: dict[lj.Variant, list[str]] = {}

    def place(variant: lj.Variant) -> int:
        fields = [getattr(variant, field.name) for field in dataclasses.fields(variant)]
        writing = repr([(type(value), value) for value in fields])
        known = writings.setdefault(variant, [])
        if writing not in known:
            known.append(writing)
        return known.index(writing)

    return [tuple(place(variant) for _, variant in each) for each in candidates]


def _anew(variant: lj.Variant) -> lj.Variant:
    try:
        return dataclasses.replace(variant)
    except Exception:  # of a user's code
        return variant


def union(variants: Sequence[lj.Variant]) -> lj.Variant:
    """The variant of a program whose factors have room for those of all of these."""
    return held(variants[0], _rows(variants))


def held(variant: lj.Variant, rows: int | None) -> lj.Variant:
    """A variant of a rank in factors of so many rows, the rest of them masked, where it can."""
    if rows is None or not isinstance(variant, LowRank):
        return variant
    try:
        return dataclasses.replace(variant, max_rank=rows)
    except Exception:  # of a user's code
        return variant


def _rows(variants: Sequence[lj.Variant]) -> int | None:
    """The most rows of factors, where ranks differ."""
    ranks = {(v.rank, v.max_rank or v.rank) for v in variants if isinstance(v, LowRank)}
    return max(most for _, most in ranks) if len(ranks) > 1 else None
