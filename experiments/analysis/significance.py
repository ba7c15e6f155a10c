"""Whether one method is better than another: tests on arrays, each by what it generalises to.

A difference that was measured once may be luck of three kinds: of the examples that it was scored
on, of the seed (initialisation, order of the data), of the training set. The tests here answer for

* new examples, with the trained models as they are: `mcnemar`, `over_examples`;
* new seeds, scored on the same examples: `over_seeds`;
* both at once: `over_both`, the one to decide by where there are several seeds.

None of them answers for another training set (Dietterich, 1998): all seeds share theirs, so what
they say is of this training set. All are two-sided and paired, which needs the same examples in the
same order, and the same seeds. Which test fits which metric: Dror et al., 2018 (ACL, P18-1128).
`holm` keeps the chance of any false claim of a family of tests below the level of one.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import signal, stats

LEVEL = 0.05
"""Of every test, once adjusted; intervals are of 1 - LEVEL."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """By how much the first is above the second, in the unit of the scores.

    `low` and `high` are the ends of the 95% interval, `p` that of no difference; None where they
    are not defined. `n` counts what was sampled: seeds or examples, of `over_both` seeds.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    n: int


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """The exact p value of McNemar's test: are there as many examples that only one gets right?

    Under the null, which of the two is right where they differ is a fair coin's fall, independent
    between examples. With one seed that is the binomial test of the discordant examples (McNemar,
    1947; Dietterich, 1998). The seeds of one example are not independent of each other, so with
    several an example's coin is tossed once for all of them: the exact sign-flip test of each
    example's difference summed over seeds (Fisher, 1935), which is McNemar's with one seed.

    Args:
      first, second: whether each example was right, (n,) or (seeds, n).

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
    # The first ones' total is a sum of independent binomials, each times its size.
    chances = np.ones(1)
    for size, count in enumerate(sizes, 1):
        own = np.zeros(size * count + 1)
        own[::size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.maximum(signal.convolve(chances, own), 0.0)
    reached = int(totals[totals > 0].sum())
    tail = min(reached, len(chances) - 1 - reached)
    return min(1.0, 2 * float(chances[: tail + 1].sum()))


def over_seeds(first: np.ndarray, second: np.ndarray) -> Difference:
    """The paired t-test of scores by seed: would other seeds, on these examples, say the same?

    Assumes differences of a normal distribution, which three seeds cannot show; and that the seeds
    share no randomness but the data, which is why this is not the t-test over resampled training
    sets that Dietterich (1998) warns of. Where no difference varies there is no variance to
    estimate, and no p value, unless all are zero.

    Args:
      first, second: scores of the same seeds, (seeds,), two at least.

    Raises:
      ValueError: fewer than two seeds, or not equally many.
    """
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(f"over_seeds needs two common seeds: got {len(first)} and {len(second)}")
    differences = first - second
    mean, n = float(differences.mean()), len(differences)
    if constant(differences, max(np.abs(first).max(), np.abs(second).max())):
        return Difference(mean, None, None, 1.0 if np.allclose(first, second) else None, n)
    found = stats.ttest_rel(first, second)
    low, high = found.confidence_interval(1 - LEVEL)
    return Difference(mean, float(low), float(high), float(found.pvalue), n)


def over_examples(observed: np.ndarray, replicated: np.ndarray, n: int) -> Difference:
    """The paired bootstrap over examples: would these models say the same of other examples?

    Every resample draws examples with replacement, the same for both methods and all seeds (Efron
    and Tibshirani, 1993; Koehn, 2004). The interval is that of the percentiles, and p is where it
    would begin to have 0 in it. Where no resample says anything else there is no interval. Assumes
    independent examples, and enough of them (100, say).

    Args:
      observed: the differences of the metric, (seeds,); one seed will do.
      replicated: the same on every resample, (seeds, resamples) (`experiments.analysis.bootstrap`).
      n: how many examples there are.
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
    """Would other seeds and other examples say the same?

    Seeds and examples are crossed, so the variance of the mean difference is at most the sum of
    its variance over seeds (of the t-test) and over examples (of the paired bootstrap): their
    interaction is counted twice, which errs to the safe side (Owen, 2007, on two-way bootstraps). A
    few seeds are not resampled, whose spread a bootstrap would have too small by (seeds - 1)/seeds
    with the tails of a normal distribution.

    The test is conservative: it is Student's with seeds - 1 degrees of freedom, the smaller of the
    two parts' as Welch's test may have it, which keeps the level whatever share of the variance is
    of seeds (Mickey and Brown, 1966). Satterthwaite's (1946), which are estimated, do not: where a
    few seeds are close to each other by luck, the variance is too small and they are too many, just
    when it matters. So the wider claim never has a smaller p value than `over_seeds` of the same
    scores; and three seeds, with two degrees of freedom, show large differences alone. Assumes what
    `over_seeds` and `over_examples` do.

    Args:
      observed, replicated: as for `over_examples`; two seeds at least.

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
    """Holm's (1979) adjusted p values: below a level, one is significant among all of them.

    The chance of any false rejection in the family is at most the level, whatever depends on what.
    What was not tested (None) stays so and is not of the family.
    """
    tested = sorted((p, index) for index, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        adjusted[index] = largest
    return adjusted


def constant(values: np.ndarray, largest: float) -> bool:
    """Whether values differ by no more than roundings of numbers as large as `largest`."""
    return bool(np.ptp(values) <= 1e-9 * largest)
