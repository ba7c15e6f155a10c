"""How often the order of methods repeats, if the study is run again with other seeds.

All methods have the same seeds, so a resample of seeds takes whole columns of their scores. Methods
with equal means share their places: who must name a first one draws it, and so is it counted here.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
MOST_SETS = 2000
"""The most disjoint sets that are all looked at; of more, so many are drawn."""
REPEATS = 0.8
"""The share of repetitions from which a result counts as stable."""
FEWEST = 10
"""With fewer seeds, the jackknife's standard error of a share can be 0, or more than the share."""
_DECIMALS = 9
"""Means that agree to so many are equal but for roundings."""


@dataclasses.dataclass(frozen=True)
class Repeats:
    """How often a result repeats, in shares of resamples: the whole order, and the first place."""

    order: float
    first: float


@dataclasses.dataclass(frozen=True)
class Stability:
    """What a study of `seeds` seeds has in common with a second one of as many."""

    seeds: int
    with_another: Repeats


@dataclasses.dataclass(frozen=True)
class Share:
    """A share of pairs of sets of seeds, and its standard error over seeds (by the jackknife).

    There is no error for fewer than FEWEST seeds, where it would be more than the share, or where
    no seed changes the share: two methods that win as many seeds each, for instance, have the same
    share without any of them.
    """

    share: float
    error: float | None
    pairs: int


def stability(
    scores: np.ndarray, sizes: Sequence[int], resamples: int = RESAMPLES, seed: int = 0
) -> list[Stability]:
    """How often the order repeats for each number of seeds.

    Seeds are drawn with replacement from those that were run. Both resamples draw the same seeds,
    so numbers close to that of the seeds that were run are too favourable.

    Args:
      scores: (methods, seeds), or (tasks, methods, seeds) for the order of means over tasks, whose
        seeds are resampled by themselves; higher is better.
      sizes: numbers of seeds.

    Raises:
      ValueError: fewer than two methods or no seed.
    """
    tasks, rng, found = _tasks(scores), np.random.default_rng(seed), []
    rng.random((resamples, tasks.shape[1]))  # drawn by an earlier version, whose numbers stay
    for size in sizes:
        one, other = (_orders(_means(tasks, size, resamples, rng), rng) for _ in range(2))
        same = one == other
        repeats = Repeats(float(same.all(1).mean()), float(same[:, 0].mean()))
        found.append(Stability(size, repeats))
    return found


def settles(found: Sequence[Stability], share: float = REPEATS) -> int | None:
    """The number of seeds from which on the first place repeats in an independent resample.

    None if it does not do so in the wanted share of cases with the most seeds that were tried.
    """
    enough = None
    for each in sorted(found, key=lambda one: one.seeds, reverse=True):
        if each.with_another.first < share:
            break
        enough = each.seeds
    return enough


def disjoint(scores: np.ndarray, size: int, seed: int = 0) -> Share:
    """The share of pairs of disjoint sets of seeds with the same first place.

    All sets are looked at, or `MOST_SETS` that are drawn. Each pair is of two studies that share no
    seed, so unlike in `stability` nothing is common to both.

    Args:
      scores: (methods, seeds), or (tasks, methods, seeds) for the first place of means over tasks;
        there, a set has the same columns of each task.
      size: the number of seeds of a set.

    Raises:
      ValueError: fewer than two methods, or fewer seeds than two sets have.
    """
    tasks = _tasks(scores)
    seeds = tasks.shape[2]
    if not 1 <= size <= seeds // 2:
        raise ValueError(f"two disjoint sets of {size} seeds need {2 * size} seeds, not {seeds}")
    members = _sets(seeds, size, np.random.default_rng(seed))
    means = np.round(tasks.mean(0) @ members.T / size, _DECIMALS)  # (methods, sets)
    winners = (means == means.max(0)).astype(float)
    winners /= winners.sum(0)
    same = winners.T @ winners
    apart = np.triu(members @ members.T == 0)
    pairs = int(apart.sum())
    left_out = []
    for each in range(seeds):
        kept = members[:, each] == 0
        without = apart & kept & kept[:, None]
        left_out.append(same[without].mean() if without.any() else math.nan)
    spread = float(np.var(left_out)) * (seeds - 1)
    share = float(same[apart].mean())
    known = seeds >= FEWEST and 1e-12 < spread <= share**2
    return Share(share, math.sqrt(spread) if known else None, pairs)


def _sets(seeds: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Different sets of seeds, (sets, seeds): 1 where a set has a seed."""
    if math.comb(seeds, size) <= MOST_SETS:
        chosen = np.array(list(itertools.combinations(range(seeds), size)))
    else:
        chosen = rng.random((MOST_SETS, seeds)).argpartition(size, axis=1)[:, :size]
    members = np.zeros((len(chosen), seeds))
    np.put_along_axis(members, chosen, 1.0, axis=1)
    return np.unique(members, axis=0)


def _tasks(scores: np.ndarray) -> np.ndarray:
    """The scores as (tasks, methods, seeds)."""
    tasks = scores[None] if scores.ndim == 2 else scores
    if tasks.ndim != 3 or tasks.shape[1] < 2 or tasks.shape[2] < 1:
        raise ValueError(f"an order needs two methods and a seed: got scores of {scores.shape}")
    return tasks


def _means(tasks: np.ndarray, size: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """The means over tasks and drawn seeds of each method, (resamples, methods)."""
    total = np.zeros((resamples, tasks.shape[1]))
    for task in tasks:
        drawn = rng.integers(task.shape[1], size=(resamples, size))
        total += task[:, drawn].mean(2).T
    return total / len(tasks)


def _orders(means: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The methods of each row from the best to the worst; equal ones in an order that is drawn."""
    return np.lexsort((rng.random(means.shape), -np.round(means, _DECIMALS)), axis=1)
