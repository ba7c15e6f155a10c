"""Tests of whether one method is better than another, on arrays of scores.

A measured difference may be due to chance in three ways: the examples it was scored on, the seed
(initialisation, order of the data), or the training set. The tests here generalise to

* new examples, with the same trained models: `mcnemar`, `over_examples`;
* new seeds, scored on the same examples: `mean_difference.over_seeds`;
* both at once: `over_both`, which should decide if there are several seeds.

No test generalises to another training set (Dietterich, 1998) where all seeds share one. All are
two-sided and paired, so they need the same examples in the same order, and the same seeds. Dror et
al., 2018 (ACL, P18-1128) say which test fits which metric. `holm` keeps the probability of any
false claim in a family of tests below the level of a single test.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import signal, stats

LEVEL = 0.05
"""The significance level of adjusted p values; intervals have confidence 1 - LEVEL."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """The first method's score minus the second's, in the unit of the scores.

    `low` and `high` are the ends of the 95% interval, and `p` is the p value of no difference. They
    are None if undefined. `n` is the number of sampled seeds or examples; for `over_both`, seeds.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    n: int


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """The exact p value of McNemar's test, on examples that only one of two methods gets right.

    Under the null hypothesis, a fair coin decides which method is right on an example where they
    differ, independently for each example. With one seed this is the binomial test of the
    discordant examples (McNemar, 1947; Dietterich, 1998). With several seeds, the results of an
    example are not independent, so one coin decides for all its seeds. This is the exact sign-flip
    test of each example's difference summed over seeds (Fisher, 1935), which equals McNemar's test
    with one seed.

    Args:
      first, second: whether each example is right, (n,) or (seeds, n).

    Raises:
      ValueError: arrays of different shapes.
    """
    if first.shape != second.shape:
        raise ValueError(f"paired tests need equal shapes, not {first.shape} and {second.shape}")
    signed = np.atleast_2d(first).astype(int) - np.atleast_2d(second).astype(int)
    totals = signed.sum(0)
    sizes = np.bincount(np.abs(totals))[1:]  # how many examples differ by 1, 2, ...
    if len(sizes) == 0:
        return 1.0
    if len(sizes) == 1:
        return float(stats.binomtest(int((totals > 0).sum()), int(sizes[0])).pvalue)
    # The first method's total is a sum of independent binomials, each multiplied by its size.
    chances = np.ones(1)
    for size, count in enumerate(sizes, 1):
        own = np.zeros(size * count + 1)
        own[::size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.maximum(signal.convolve(chances, own), 0.0)
    reached = int(totals[totals > 0].sum())
    tail = min(reached, len(chances) - 1 - reached)
    return min(1.0, 2 * float(chances[: tail + 1].sum()))


def over_examples(observed: np.ndarray, replicated: np.ndarray, n: int) -> Difference:
    """The paired bootstrap over examples, which generalises to new examples for the same models.

    Every resample draws examples with replacement, the same for both methods and all seeds (Efron
    and Tibshirani, 1993; Koehn, 2004). The interval is the percentile interval, and p is the level
    at which it begins to contain 0. If all resamples agree, there is no interval. The test assumes
    independent examples, and enough of them (about 100).

    Args:
      observed: the differences of the metric, (seeds,); one seed is enough.
      replicated: the differences on every resample, (seeds, resamples), see
        `experiments.analysis.bootstrap`.
      n: the number of examples.
    """
    means = replicated.mean(0)
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2 * (1 + float(beyond)) / (1 + len(means)))
    mean = float(observed.mean())
    if constant(means, np.abs(replicated).max()):
        return Difference(mean, None, None, p, n)
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    return Difference(mean, float(low), float(high), p, n)


def over_both(observed: np.ndarray, replicated: np.ndarray) -> Difference:
    """The test over seeds and examples, which generalises to new seeds and new examples.

    Seeds and examples are crossed. So the variance of the mean difference is at most the sum of its
    variance over seeds (from the t-test) and over examples (from the paired bootstrap). The sum
    counts their interaction twice, which is conservative (Owen, 2007, on two-way bootstraps). Seeds
    are not resampled: for a few seeds, a bootstrap's variance would be too small by the factor
    (seeds - 1)/seeds, and its tails would be those of a normal distribution.

    The test is conservative. It is Student's t-test with seeds - 1 degrees of freedom, the smaller
    number of the two parts, as allowed in Welch's test. This keeps the level for any share of the
    variance that is due to seeds (Mickey and Brown, 1966). Satterthwaite's (1946) estimated degrees
    of freedom do not: if a few seeds are close by chance, the variance is too small and the degrees
    of freedom too many, both at once. So the p value is never smaller than that of the t-test over
    seeds for the same scores. Three seeds, with two degrees of freedom, can only show large
    differences. The assumptions are those of that test and of `over_examples`.

    Args:
      observed, replicated: as for `over_examples`; at least two seeds.

    Raises:
      ValueError: fewer than two seeds.
    """
    if (n := len(observed)) < 2:
        raise ValueError(f"over_both needs two common seeds: got {n}")
    mean = float(observed.mean())
    of_seeds = float(observed.var(ddof=1)) / n
    of_examples = float(replicated.mean(0).var(ddof=1))
    variance = of_seeds + of_examples
    largest = max(np.abs(observed).max(), np.abs(replicated).max())
    if math.sqrt(variance) <= 1e-9 * largest or largest == 0:
        return Difference(mean, None, None, 1.0 if largest == 0 else None, n)
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * math.sqrt(variance)
    p = 2 * float(stats.t.sf(abs(mean) / math.sqrt(variance), n - 1))
    return Difference(mean, mean - half, mean + half, p, n)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) adjusted p values; a value below the level is significant in the family.

    The probability of any false rejection in the family is at most the level, for any dependence
    between the tests. A None, for no test, stays None and does not belong to the family.
    """
    tested = sorted((p, index) for index, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        adjusted[index] = largest
    return adjusted


def constant(values: np.ndarray, largest: float) -> bool:
    """Whether values are equal up to the rounding of numbers as large as `largest`."""
    return bool(np.ptp(values) <= 1e-9 * largest)
