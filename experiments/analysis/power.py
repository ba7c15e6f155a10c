"""How large a difference tests can show, and how many seeds and test examples they need.

All tests are Student's t-tests of a mean difference with a standard error. `Design` says what error
and degrees of freedom numbers of seeds and examples give, for one task or the mean over several. On
a task, the variance is that of `significance`: of seeds / seeds + of examples / examples + of what
one example adds with one seed / (seeds * examples). More seeds leave the second part as it is, and
more examples the first. Power is the mean, over the chi distribution of the estimated error, of a
normal probability. For the t-test this is the noncentral t-distribution (Cohen, 1988), which SciPy
gets wrong for few degrees of freedom or small levels; for two one-sided tests (TOST) see Phillips
(1990). For a family of m tests by Holm's procedure, `family_level` gives the level of the first
step; later steps have larger levels, so the power in the family is at least the one found.
"""

import dataclasses
import math
from collections.abc import Callable

from scipy import integrate, optimize, special, stats

from experiments.analysis.significance import Squares, degrees

POWER = 0.8
"""The probability of finding a difference that reports ask for."""
MOST_SEEDS = 1_000_000
MOST_TIMES = 1_000_000.0


@dataclasses.dataclass(frozen=True)
class Task:
    """The noise of paired differences on a task, as standard deviations in points."""

    seeds: float
    """Of seeds, scored on very many examples."""
    examples: float = 0.0
    """Of what an example adds to the mean of very many seeds."""
    rest: float = 0.0
    """Of what an example adds with one seed alone."""
    n: float = math.inf
    """The number of examples. With the default, seeds are the only noise."""

    @classmethod
    def of(cls, found: Squares) -> "Task":
        """The noise that mean squares estimate; a negative variance counts as none."""
        seeds, n = found.shape
        of_seeds, of_examples = (
            math.sqrt(max(each - found.rest, 0.0) * count)
            for each, count in ((found.seeds, seeds), (found.examples, n))
        )
        return cls(of_seeds, of_examples, math.sqrt(found.rest * seeds * n), n)

    def squares(self, seeds: float, times: float = 1.0) -> Squares:
        """The mean squares to expect of so many seeds, and so many times the examples."""
        n = self.n * times
        rest = self.rest**2 / (seeds * n)
        return Squares(self.seeds**2 / seeds + rest, self.examples**2 / n + rest, rest, (seeds, n))


@dataclasses.dataclass(frozen=True)
class Design:
    """A study's tasks, of the same weight."""

    tasks: tuple[Task, ...]

    def error(self, seeds: float, times: float = 1.0) -> float:
        """The standard error of the mean over tasks, of so many seeds each.

        Args:
          times: how many times the examples that it has each task gets.
        """
        parts = [task.squares(seeds, times).variance for task in self.tasks]
        return math.sqrt(sum(parts)) / len(parts)

    def df(self, seeds: int, times: float = 1.0) -> float:
        own = [task.squares(seeds, times) for task in self.tasks]
        return degrees([each.variance for each in own], [each.df for each in own], seeds)

    @property
    def of_examples(self) -> float:
        """The part of the standard error that no number of seeds takes away."""
        return self.error(math.inf)


def family_level(level: float, tests: int) -> float:
    """The level of the first step of Holm's procedure in a family of tests."""
    return level / max(tests, 1)


def difference_power(difference: float, error: float, df: float, level: float) -> float:
    """The probability that a two-sided t-test finds a true difference.

    Args:
      difference: the true mean difference, in the unit of the error.
      error: the true standard error of the mean difference, above 0.
      df: the degrees of freedom of its estimate.
      level: of the test, two-sided.
    """
    critical, shift = float(stats.t.isf(level / 2, df)), abs(difference) / error

    def found(ratio: float) -> float:
        return special.ndtr(shift - critical * ratio) + special.ndtr(-shift - critical * ratio)

    return _mean(found, df, at=shift / critical)


def equivalence_power(margin: float, error: float, df: float, level: float) -> float:
    """The probability that TOST shows equal methods to differ by less than the margin.

    Args: as for `difference_power`; the level is that of each one-sided test.
    """
    critical = float(stats.t.isf(level, df))
    widest = margin / error / critical
    """The largest estimated error, in true ones, with which anything can be shown."""

    def shown(ratio: float) -> float:
        inside = critical * (widest - ratio)
        return special.ndtr(inside) - special.ndtr(-inside)

    return _mean(shown, df, at=widest, highest=widest)


def _mean(
    of_ratio: Callable[[float], float], df: float, at: float, highest: float = math.inf
) -> float:
    """A probability that depends on how large the estimated error is, in true ones.

    Args:
      df: the degrees of freedom of the estimated error.
      at: where the probability changes most.
      highest: the largest ratio at which it is above 0.
    """
    ratios = stats.chi(df, scale=1 / math.sqrt(df))
    low, high = (float(each) for each in ratios.ppf([1e-14, 1 - 1e-14]))
    high = min(high, highest)
    if high <= low:
        return 0.0
    points = [each for each in (at, 1.0) if low < each < high]

    constant = math.log(2) + df / 2 * math.log(df / 2) - math.lgamma(df / 2)

    def density(ratio: float) -> float:
        return of_ratio(ratio) * math.exp(constant + (df - 1) * math.log(ratio) - df * ratio**2 / 2)

    return float(integrate.quad(density, low, high, points=points, limit=200)[0])


PowerOf = Callable[[float, float, float, float], float]
"""`difference_power` or `equivalence_power`: of a difference or a margin, error, df and level."""


def smallest(power_of: PowerOf, error: float, df: float, level: float, power: float) -> float:
    """The smallest difference or margin with a wanted power, to a millionth of the error."""
    high = 1.0

    def lacks(size: float) -> float:
        return power_of(size, 1.0, df, level) - power

    while lacks(high) < 0:
        high *= 2
    return error * optimize.root_scalar(lacks, bracket=(0.0, high), xtol=1e-6).root


def detectable(error: float, df: float, level: float, power: float = POWER) -> float:
    """The smallest true difference that a two-sided t-test finds with a wanted power."""
    return smallest(difference_power, error, df, level, power)


def seeds_needed(
    power_of: PowerOf, design: Design, size: float, level: float, power: float = POWER
) -> int | None:
    """The number of seeds, 2 at least, with which a difference or a margin has the wanted power.

    None if more than a million are needed.
    """

    def enough(seeds: int) -> bool:
        return power_of(size, design.error(seeds), design.df(seeds), level) >= power

    low, high = 1, 2
    while not enough(high):
        if high == MOST_SEEDS:
            return None
        low, high = high, min(high * 2, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def examples_needed(
    power_of: PowerOf,
    design: Design,
    seeds: int,
    size: float,
    level: float,
    power: float = POWER,
) -> float | None:
    """How many times the examples a difference or a margin needs for the wanted power.

    None if a million times as many are not enough; two examples are the fewest.
    """

    def lacks(log_times: float) -> float:
        times = math.exp(log_times)
        error, df = design.error(seeds, times), design.df(seeds, times)
        return power - power_of(size, error, df, level)

    low, high = math.log(2 / min(task.n for task in design.tasks)), math.log(MOST_TIMES)
    if lacks(high) > 0:
        return None
    if lacks(low) < 0:
        return math.exp(low)
    return math.exp(optimize.root_scalar(lacks, bracket=(low, high), xtol=1e-6).root)
