"""How large a difference tests by seeds can show, and how many seeds they need.

All tests are Student's t-tests of a mean difference with a standard error: of one task, the sd of
the paired differences / sqrt(seeds). `Design` says what error and degrees of freedom a number of
seeds gives, for one task or the mean over several. Power is the mean, over the chi distribution of
the estimated error, of a normal probability. For the t-test this is the noncentral t-distribution
(Cohen, 1988), which SciPy gets wrong for few degrees of freedom or small levels; for two one-sided
tests (TOST) see Phillips (1990). For a family of m tests by Holm's procedure, `family_level` gives
the level of the first step; later steps have larger levels, so the power in the family is at least
the one found.
"""

import dataclasses
import math
from collections.abc import Callable

from scipy import integrate, optimize, special, stats

from experiments.analysis.mean_difference import degrees

POWER = 0.8
"""The probability of finding a difference that reports ask for."""
MOST_SEEDS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Design:
    """A study's tasks, of the same weight, by the sd of their paired differences, in points."""

    deviations: tuple[float, ...]

    def error(self, seeds: int) -> float:
        """The standard error of the mean over tasks, of so many seeds each."""
        return math.hypot(*self.deviations) / len(self.deviations) / math.sqrt(seeds)

    def df(self, seeds: int) -> float:
        own = [seeds - 1.0] * len(self.deviations)
        return degrees([sd**2 / seeds for sd in self.deviations], own, seeds)


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


def equivalence_power(
    margin: float, error: float, df: float, level: float, difference: float = 0.0
) -> float:
    """The probability that TOST shows a true difference to be within the margin.

    Args: as for `difference_power`; the level is that of each one-sided test.
    """
    critical, shift = float(stats.t.isf(level, df)), difference / error
    widest = margin / error / critical
    """The largest estimated error, in true ones, with which anything can be shown."""

    def shown(ratio: float) -> float:
        inside = critical * (widest - ratio)
        return special.ndtr(inside - shift) - special.ndtr(-inside - shift)

    return _mean(shown, df, at=(margin - abs(difference)) / error / critical, highest=widest)


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


def detectable(error: float, df: float, level: float, power: float = POWER) -> float:
    """The smallest true difference that a two-sided t-test finds with a wanted power."""
    return error * _smallest(lambda x: difference_power(x, 1.0, df, level), power)


def showable(error: float, df: float, level: float, power: float = POWER) -> float:
    """The smallest margin within which TOST shows no difference, with a wanted power."""
    return error * _smallest(lambda x: equivalence_power(x, 1.0, df, level), power)


def seeds_to_detect(
    design: Design, difference: float, level: float, power: float = POWER
) -> int | None:
    """The number of seeds with which a two-sided t-test finds a true difference.

    None if more than a million are needed.
    """
    return _fewest(
        lambda n: difference_power(difference, design.error(n), design.df(n), level) >= power
    )


def seeds_to_show(
    design: Design, margin: float, level: float, power: float = POWER, difference: float = 0.0
) -> int | None:
    """The number of seeds with which TOST shows a true difference to be within the margin.

    None if more than a million are needed.

    Raises:
      ValueError: the difference is not within the margin.
    """
    if not abs(difference) < margin:
        raise ValueError(f"a difference of {difference} is not within a margin of {margin}")
    return _fewest(
        lambda n: (
            equivalence_power(margin, design.error(n), design.df(n), level, difference) >= power
        )
    )


def _smallest(power_of: Callable[[float], float], wanted: float) -> float:
    """Where an increasing power reaches the wanted one, to a millionth."""
    high = 1.0
    while power_of(high) < wanted:
        high *= 2
    return optimize.root_scalar(lambda x: power_of(x) - wanted, bracket=(0.0, high), xtol=1e-6).root


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """The smallest number of seeds, 2 at least, that is enough, if all larger ones are as well."""
    low, high = 1, 2
    while not enough(high):
        if high == MOST_SEEDS:
            return None
        low, high = high, min(high * 2, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
