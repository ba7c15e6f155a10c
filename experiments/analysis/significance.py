"""Tests of whether one method is better than another, on arrays of scores.

A measured difference may be due to chance in three ways: the examples it was scored on, the seed
(initialisation, order of the data), or the training set. The tests here generalise to

* new examples, with the same trained models: `mcnemar`, `over_examples`;
* new seeds, scored on the same examples: `over_seeds`, and over several tasks, `over_tasks`;
* both at once: `over_both`, which should decide if there are several seeds.

No test generalises to another training set (Dietterich, 1998) where all seeds share one. All are
two-sided and paired, so they need the same examples in the same order, and the same seeds. Dror et
al., 2018 (ACL, P18-1128) say which test fits which metric. `holm` keeps the probability of any
false claim in a family of tests below the level of a single test.

**Over seeds and examples**, which are crossed: all seeds have the same examples. The difference of
two methods with seed s on example e is taken to be d_se = mean + a_s + b_e +
c_se: seeds differ, examples differ, and some seeds do better on some examples. The variance of the
mean of S seeds and E examples is var(a) / S + var(b) / E + var(c) / SE. With the mean squares of
the two-way analysis of variance, (MS_seeds + MS_examples - MS_rest) / SE is an unbiased estimate of
it (Cornfield and Tukey, 1956; Searle, Casella and McCulloch, 1992). The variance of the S means of
seeds, / S, is MS_seeds / SE: it holds var(c), and so does that of the E means of examples. Their
sum would count var(c) twice, as resampling both seeds and examples does (Owen, 2007). As the true
variance is at least each of the two, so is the estimate. Miller (2024, "Adding error bars to
evals") counts examples as a sample in the same way.

For accuracy, the values of examples are 0 and 1. For other metrics they are those of the jackknife
(`bootstrap.pseudovalues`): for many examples, a metric is the mean of these.

Degrees of freedom are those of Satterthwaite (1946) over the three mean squares if there are
`TRUSTED` seeds or more. With fewer seeds they are seeds - 1, as over several tasks: few seeds may
be close by chance, so that the estimate is small and its degrees of freedom many, both at once.

**Over several tasks**, each has the same weight, and the claim is about these tasks. Seeds of
different tasks are taken as independent, so the variance of the mean of T task means is the sum of
theirs / T². Its degrees of freedom are those of Welch and Satterthwaite (1946) if each task has
`TRUSTED` seeds or more. With fewer seeds, a task whose variance is small by chance makes them too
many. At the small levels of Holm's first steps, tests then claim too much: with 14 methods and
tasks of unequal noise, up to 1.7 times the level with 5 seeds and 3.3 times with 3, against 1.25
times with 10 and 1.05 times with 20. So with fewer seeds they are those of the task with the
fewest, seeds - 1, which never claims too much (Mickey and Brown, 1966), at the cost of wider
intervals. Differences that are all equal by chance have no noise to add: with few seeds, such a
task and a task with noise have no error together, unless its mean is 0.

**Equivalence** is two one-sided tests (TOST) of whether a mean difference is smaller than a margin.
Not to find a difference does not show that there is none. TOST (Schuirmann, 1987; Lakens, 2017)
tests both that the difference is not above -margin, and that it is not below +margin. If both are
rejected at the level, the difference lies within the margin; that is when the two-sided interval of
confidence 1 - 2 * level lies within it. The probability of a false claim is at most the level.

If all differences are equal, no variance can be estimated. The sign test decides then: if the
median lay at the margin or beyond, each of n seeds would be inside with a probability of at most
1/2, and all of them with 2^-n.

**Such tasks**: the mean of all tasks like those of a study, of which these are taken to be a sample
(`new_task`). The model is y_t = mean + b_t + e_t: the effect of a task differs from the mean by
b_t, which varies between tasks, and its estimate from its effect by e_t, which varies with seeds.
The variance of the tasks' estimates holds both. So Student's t-test of the estimates is a test of
the mean. At levels up to 8.3% it never claims too much, however different the noise of tasks is
(Bakirov and Székely, 2005; Ibragimov and Müller, 2010). Tests that weight tasks by estimated errors
can claim too much. With few tasks the interval is wide, however many seeds there are.

The sd of b_t is estimated by moments with equal weights (Hedges, 1983; "Cochran ANOVA" of
DerSimonian and Kacker, 2007): the variance of the tasks' estimates, less the mean of their squared
errors. It is unbiased, before it is cut off at 0, though errors are themselves estimated from few
seeds. DerSimonian and Laird's (1986) is the same where all errors are equal. Else it weights tasks
by their errors, so a task whose error is small by chance has most of the weight.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np
from scipy import signal, stats

LEVEL = 0.05
"""The significance level of adjusted p values; intervals have confidence 1 - LEVEL."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean difference in the unit of the scores, with its two-sided interval of 95%, or a level.

    `p` is that of no difference. `low`, `high` and `p` are None where no variance is known. `n` is
    the number of scored examples over examples alone, else of common seeds: for the mean over
    tasks, the fewest on any of them; for a new task, the number of tasks.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int

    def __neg__(self) -> "Estimate":
        """That of the second method minus the first."""
        low = None if self.high is None else -self.high
        high = None if self.low is None else -self.low
        return dataclasses.replace(self, mean=-self.mean, low=low, high=high)


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


def over_examples(observed: np.ndarray, replicated: np.ndarray, n: int) -> Estimate:
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
        return Estimate(mean, None, None, p, n)
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    return Estimate(mean, float(low), float(high), p, n)


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


TRUSTED = 10
"""The fewest seeds of each task with which Welch and Satterthwaite's degrees of freedom hold."""


@dataclasses.dataclass(frozen=True)
class MeanDifference:
    """A mean of paired differences, in points; normally distributed differences are assumed.

    `error` is its standard error, None if one seed gives none, and 0 if all differences are equal.
    `df` are the error's degrees of freedom. `n` is the number of seeds, over tasks the fewest.
    """

    mean: float
    error: float | None
    df: float
    n: int

    @property
    def p(self) -> float | None:
        """The two-sided p value of no difference; None if one seed gives no variance.

        If all differences are equal, it is that of the sign test.
        """
        if self.error is None:
            return None
        if self.error == 0:
            return 1.0 if self.mean == 0 else min(1.0, 2.0 ** (1 - self.n))
        return 2 * float(stats.t.sf(abs(self.mean) / self.error, self.df))

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """The two-sided interval of confidence 1 - level; None if no variance is known."""
        if not self.error:
            return None
        half = float(stats.t.isf(level / 2, self.df)) * self.error
        return self.mean - half, self.mean + half

    def estimate(self, level: float = LEVEL) -> Estimate:
        """The mean with its interval of confidence 1 - level."""
        low, high = self.interval(level) or (None, None)
        return Estimate(self.mean, low, high, self.p, self.n)

    def upper(self, level: float = LEVEL) -> float | None:
        """The one-sided upper bound of confidence 1 - level; None if no variance is known.

        If all differences are equal, it is that of the sign test: their value, if seeds suffice.
        """
        if self.error is None:
            return None
        if self.error == 0:
            return self.mean if 0.5**self.n <= level else None
        return self.mean + float(stats.t.isf(level, self.df)) * self.error


def over_seeds(first: np.ndarray, second: np.ndarray) -> MeanDifference:
    """The first method's scores minus the second's.

    Args:
      first, second: scores of the same seeds, (seeds,), at least one; of runs that share draws of
        the examples, the means of each.

    Raises:
      ValueError: no seeds, or different numbers of seeds.
    """
    if first.shape != second.shape or len(first) == 0:
        raise ValueError(f"paired scores need common seeds: got {len(first)} and {len(second)}")
    differences = first - second
    n, mean = len(differences), float(differences.mean())
    if np.allclose(first, second, rtol=1e-9, atol=0):
        mean = 0.0  # but for roundings
    if n == 1:
        return MeanDifference(mean, None, 0.0, n)
    if constant(differences, max(np.abs(first).max(), np.abs(second).max())):
        return MeanDifference(mean, 0.0, n - 1.0, n)
    return MeanDifference(mean, float(differences.std(ddof=1)) / math.sqrt(n), n - 1.0, n)


def over_tasks(tasks: Sequence[MeanDifference]) -> MeanDifference:
    """The mean over tasks of the same weight.

    It has no error if a task has one seed, or fewer than `TRUSTED` seeds with equal differences
    that are not 0, beside a task whose differences vary.
    """
    mean, fewest = statistics.fmean(task.mean for task in tasks), min(task.n for task in tasks)
    if abs(mean) <= 1e-9 * max(abs(task.mean) for task in tasks):
        mean = 0.0  # but for roundings
    errors = [task.error for task in tasks if task.error is not None]
    flat = any(each.error == 0 and each.mean and each.n < TRUSTED for each in tasks)
    if len(errors) < len(tasks) or (flat and any(errors)):
        return MeanDifference(mean, None, 0.0, fewest)
    df = degrees([error**2 for error in errors], [task.df for task in tasks], fewest)
    return MeanDifference(mean, math.hypot(*errors) / len(tasks), df, fewest)


def degrees(variances: Sequence[float], df: Sequence[float], fewest: int) -> float:
    """The degrees of freedom of a sum of variances of means, each with its own.

    Args:
      fewest: of the numbers of seeds from which they were estimated.
    """
    if fewest < TRUSTED or not any(variances):
        return fewest - 1.0
    parts = sum(each**2 / own for each, own in zip(variances, df, strict=True))
    return sum(variances) ** 2 / parts


def at_most(mean: float, error: float, df: float, bound: float) -> float:
    """The one-sided p value of a difference of `bound` or more; a small one shows it is below.

    It is below the level where the one-sided upper bound of confidence 1 - level is below `bound`.
    """
    return float(stats.t.cdf((mean - bound) / error, df))


def equivalence_of_mean(found: MeanDifference, margin: float) -> float | None:
    """The p value of TOST, the larger of the two one-sided ones; None for one seed."""
    if found.error is None:
        return None
    if found.error == 0:
        return 0.5**found.n if abs(found.mean) < margin else 1.0
    mean, error, df = found.mean, found.error, found.df
    return max(at_most(mean, error, df, margin), at_most(-mean, error, df, margin))


FEWEST_TASKS = 3
"""The fewest tasks from which a variance between tasks is estimated."""


def new_task(means: np.ndarray) -> MeanDifference | None:
    """The mean over tasks, with an error that holds the variance between tasks and that of seeds.

    Args:
      means: the mean difference on each task, (tasks,).

    Returns:
      The mean, of as many degrees of freedom as tasks less one; None with fewer than three tasks.
    """
    if (tasks := len(means)) < FEWEST_TASKS:
        return None
    error = float(means.std(ddof=1)) / math.sqrt(tasks)
    return MeanDifference(float(means.mean()), error, tasks - 1.0, tasks)


def between_tasks(tasks: Sequence[MeanDifference]) -> float | None:
    """The sd of the true differences between tasks, in points; 0 if the noise of seeds explains it.

    Args:
      tasks: the mean difference on each task.

    Returns:
      None with fewer than three tasks, or where one task has no error.
    """
    errors = [task.error for task in tasks if task.error]
    if len(tasks) < FEWEST_TASKS or len(errors) < len(tasks):
        return None
    seen = statistics.variance(task.mean for task in tasks)
    return math.sqrt(max(0.0, seen - statistics.fmean(each**2 for each in errors)))


@dataclasses.dataclass(frozen=True)
class Squares:
    """The mean squares of seeds, examples and their interaction, each as a variance of the mean.

    They are divided by seeds * examples.
    """

    seeds: float
    examples: float
    rest: float
    shape: tuple[float, float]
    """The numbers of seeds and examples, at least two each."""

    @property
    def variance(self) -> float:
        """That of the mean over new seeds and new examples."""
        return max(self.seeds + self.examples - self.rest, self.seeds, self.examples)

    @property
    def df(self) -> float:
        """The degrees of freedom of the variance."""
        seeds, examples = (each - 1.0 for each in self.shape)
        if self.shape[0] < TRUSTED or self.variance == 0:
            return seeds
        parts = self.seeds**2 / seeds + self.examples**2 / examples
        return self.variance**2 / (parts + self.rest**2 / (seeds * examples))


def squares(scores: np.ndarray, differences: np.ndarray) -> Squares:
    """The mean squares of the differences of two methods.

    Args:
      scores: by seed, (seeds,); for a metric that is not a mean over examples, these are not quite
        the means of the next ones.
      differences: of what each example adds, (seeds, examples).
    """
    seeds, examples = differences.shape
    by_seed, by_example = differences.mean(1), differences.mean(0)
    rest = differences - by_seed[:, None] - by_example + differences.mean()
    scale = (seeds - 1) * (examples - 1) * seeds * examples
    return Squares(
        float(scores.var(ddof=1)) / seeds,
        float(by_example.var(ddof=1)) / examples,
        float((rest**2).sum()) / scale,
        (seeds, examples),
    )


def over_both(
    first: np.ndarray, second: np.ndarray, ours: np.ndarray, theirs: np.ndarray
) -> MeanDifference:
    """The first method's scores minus the second's, with its error over seeds and examples.

    Args:
      first, second: as for `over_seeds`; one seed gives no error.
      ours, theirs: what each example adds to these scores, (seeds, examples).

    Raises:
      ValueError: no seeds, or arrays of different shapes.
    """
    found = over_seeds(first, second)
    if ours.shape != theirs.shape or len(ours) != len(first):
        raise ValueError(f"paired scores need the same examples: {ours.shape} and {theirs.shape}")
    if found.error is None:
        return found
    own = squares(first - second, ours - theirs)
    if math.sqrt(own.variance) <= 1e-9 * max(np.abs(ours).max(), np.abs(theirs).max()):
        return found  # all differences are 0, but for roundings
    return dataclasses.replace(found, error=math.sqrt(own.variance), df=own.df)
