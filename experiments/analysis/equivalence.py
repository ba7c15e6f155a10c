"""Two one-sided tests (TOST) of whether a mean difference is smaller than a margin.

Not to find a difference does not show that there is none. TOST (Schuirmann, 1987; Lakens, 2017)
tests both that the difference is not above -margin, and that it is not below +margin. If both are
rejected at the level, the difference lies within the margin; that is when the two-sided interval of
confidence 1 - 2 * level lies within it. The probability of a false claim is at most the level.

If all differences are equal, no variance can be estimated. The sign test decides then: if the
median lay at the margin or beyond, each of n seeds would be inside with a probability of at most
1/2, and all of them with 2^-n.
"""

from scipy import stats

from experiments.analysis.mean_difference import MeanDifference


def tost(mean: float, error: float, df: float, margin: float) -> float:
    """The p value of TOST: the larger of the two one-sided ones.

    Args:
      mean: the mean difference, in the unit of the margin.
      error: its standard error, above 0.
      df: the degrees of freedom of the error.
      margin: above 0.

    Raises:
      ValueError: the margin or the error is not above 0.
    """
    if not (margin > 0 and error > 0):
        raise ValueError(f"TOST needs a margin and an error above 0, not {margin} and {error}")
    return max(at_most(mean, error, df, margin), at_most(-mean, error, df, margin))


def at_most(mean: float, error: float, df: float, bound: float) -> float:
    """The one-sided p value of a difference of `bound` or more; a small one shows it is below.

    It is below the level where the one-sided upper bound of confidence 1 - level is below `bound`.
    """
    return float(stats.t.cdf((mean - bound) / error, df))


def of_mean(found: MeanDifference, margin: float) -> float | None:
    """The p value of TOST of a mean difference, of one task or over tasks; None for one seed."""
    if found.error is None:
        return None
    if found.error == 0:
        return 0.5**found.n if abs(found.mean) < margin else 1.0
    return tost(found.mean, found.error, found.df, margin)
