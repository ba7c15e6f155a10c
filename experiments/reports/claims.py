"""Check the claims of a study: what was stated before the first run, beside what was found.

A claim is a sentence. A study's table says how to check each, as plain data (`TABLE["checks"]`, in
the order of the claims):

    {"upper_below": 1.0}                            the upper bound of every gain is below it
    {"equivalent": ("lora_float32",)}               these rows are equivalent to the reference
    {"not_better": ("full",)}                       these rows are not better than the reference
    {"worse": ("vera",)}                            these rows are worse than the reference
    {"first_repeats_below": 0.5, "sets": (1, 3)}    for disjoint sets of so many seeds
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.analysis import rank_stability
from experiments.analysis.gains import Gain, Gains
from lora_jax.messages import require_known

Check = Mapping[str, Any]
KINDS = ("upper_below", "equivalent", "not_better", "worse", "first_repeats_below")


def sentences(
    claims: Sequence[str],
    checks: Sequence[Check],
    found: Gains,
    controls: Collection[str],
    scores: np.ndarray,
) -> Iterator[str]:
    """Each claim, and whether it holds.

    Args:
      found: the gains over the reference.
      controls: the rows that no claim on all methods is about.
      scores: in points, (tasks, methods, seeds).
    """
    for number, claim in enumerate(claims):
        said = ""
        if number < len(checks):
            said = f" {_outcome(checks[number], found, controls, scores)}"
            alone = _outcome(checks[number], _over_seeds(found), controls, scores)
            said += f" Over seeds alone: {alone}" * (f" {alone}" != said)
        yield f"{stated(claim)}{said}"


def _over_seeds(found: Gains) -> Gains:
    """The gains as they are over seeds alone, where they are over examples, too."""
    return dataclasses.replace(found, methods=tuple(_alone(each) for each in found.methods))


def _alone(gain: Gain) -> Gain:
    own = gain.seeds_alone
    if own is None:
        return gain
    same = {"over_tasks": own.over_tasks, "adjusted": own.adjusted, "equivalent": own.equivalent}
    return dataclasses.replace(gain, verdict=own.verdict, upper=own.upper, **same)


def stated(claim: str) -> str:
    """A claim, and when it was stated."""
    return f"Claim, stated before the first run: {claim}"


def _outcome(check: Check, found: Gains, controls: Collection[str], scores: np.ndarray) -> str:
    kind = next(iter(check))
    require_known(kind, KINDS, f"unknown check of a claim: '{kind}'")
    if kind == "first_repeats_below":
        return _of_first_places(check[kind], check["sets"], scores)
    if kind == "upper_below":
        rows = [each.key for each in found.methods if each.key not in controls]
        return _of_rows(rows, found, lambda gain: _is_below(gain, check[kind]))
    tests = {"equivalent": _is_equivalent, "not_better": _is_not_better, "worse": _is_worse}
    test = tests[kind]
    return _of_rows(check[kind], found, lambda gain: test(gain, found))


def _of_rows(rows: Sequence[str], found: Gains, test: Callable[[Gain], bool | None]) -> str:
    """The outcome of a claim on each of some rows: True, False, or None for undecided."""
    by_key = {each.key: each for each in found.methods}
    said = {row: test(by_key[row]) if row in by_key else None for row in rows}
    if all(said.values()):
        return "It holds."
    failed = [_named(by_key[row]) for row, one in said.items() if one is False]
    if failed:
        return f"It does not hold for {', '.join(failed)}."
    names = [by_key[row].label if row in by_key else row for row, one in said.items() if not one]
    return f"It is undecided for {', '.join(names)}."


def _named(gain: Gain) -> str:
    bound = "" if gain.upper is None else f", upper bound {gain.upper:+z.2f}"
    return f"{gain.label} ({gain.over_tasks.mean:+z.2f}{bound})"


def _is_below(gain: Gain, limit: float) -> bool | None:
    return None if gain.adjusted is None or gain.upper is None else gain.upper < limit


def _is_equivalent(gain: Gain, found: Gains) -> bool | None:
    if gain.equivalent is not None and gain.equivalent < found.level:
        return True
    low, high = gain.over_tasks.low, gain.over_tasks.high
    apart = low is not None and high is not None and max(low, -high) > found.margin
    return False if apart else None


def _is_not_better(gain: Gain, found: Gains) -> bool | None:
    if gain.verdict == "better":
        return False
    return True if gain.upper is not None and gain.upper <= 0 else None


def _is_worse(gain: Gain, found: Gains) -> bool | None:
    return {"worse": True, "better": False}.get(gain.verdict)


def _of_first_places(limit: float, sizes: Sequence[int], scores: np.ndarray) -> str:
    methods, seeds = scores.shape[1:]
    if methods < 2 or seeds < 2 * max(sizes):
        return "It is undecided: too few methods or seeds are there."
    shares = {size: rank_stability.disjoint(scores, size).share for size in sizes}
    above = [f"{share:.0%} with sets of {size}" for size, share in shares.items() if share >= limit]
    return f"It does not hold: {', '.join(above)}." if above else "It holds."
