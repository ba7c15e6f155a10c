"""Mean differences over seeds and over tasks: SciPy's t-tests, and coverage of intervals."""

import numpy as np
import pytest
from scipy import stats

from experiments.analysis import significance
from experiments.analysis.significance import MeanDifference, over_seeds, over_tasks

STUDIES = 600


def test_over_seeds_is_scipy_s_paired_t_test():
    first, second = np.random.default_rng(0).normal(80, 2, (2, 7))
    found, theirs = over_seeds(first, second), stats.ttest_rel(first, second)
    assert (found.n, found.df) == (7, 6) and found.p == pytest.approx(theirs.pvalue, rel=1e-12)
    for level in (0.05, 0.2):
        interval = theirs.confidence_interval(1 - level)
        assert found.interval(level) == pytest.approx((interval.low, interval.high), rel=1e-12)
    below = stats.ttest_rel(first, second, alternative="less").confidence_interval(0.95)
    assert found.upper() == pytest.approx(below.high, rel=1e-12)


def test_without_variance_there_is_no_interval():
    scores = np.array([71.1, 72.2, 73.3])
    same, shifted = over_seeds(scores / 3 * 3, scores), over_seeds(scores + 0.1, scores)
    assert same == MeanDifference(0.0, 0.0, 2.0, 3) and same.p == 1.0
    assert shifted.error == 0 and shifted.mean == pytest.approx(0.1) and shifted.p == 2 * 0.5**3
    one = over_seeds(scores[:1], scores[:1] - 1)
    assert one.error is None and one.mean == pytest.approx(1.0)
    for each in (shifted, one):
        assert (each.interval(), each.upper()) == (None, None)
    assert one.p is None
    with pytest.raises(ValueError, match="need common seeds: got 0 and 0"):
        over_seeds(scores[:0], scores[:0])
    with pytest.raises(ValueError, match="need common seeds: got 3 and 2"):
        over_seeds(scores, scores[:2])


def test_over_two_tasks_is_welch_s_test():
    """The sum of two means is the difference of the first from the negative of the second."""
    rng = np.random.default_rng(1)
    one, other = rng.normal(0.5, 1.0, 12), rng.normal(0.5, 3.0, 20)
    found = over_tasks([over_seeds(each, np.zeros(len(each))) for each in (one, other)])
    theirs = stats.ttest_ind(one, -other, equal_var=False)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-12)
    assert found.df == pytest.approx(theirs.df, rel=1e-12)
    ends = np.array(theirs.confidence_interval(0.95)) / 2
    assert found.interval() == pytest.approx(tuple(ends), rel=1e-12)
    assert (found.mean, found.n) == (pytest.approx((one.mean() + other.mean()) / 2), 12)


def test_with_few_seeds_the_fewest_count():
    tasks = [MeanDifference(1.0, 0.3, n - 1.0, n) for n in (9, 30)]
    assert over_tasks(tasks).df == 8
    assert over_tasks(tasks).error == pytest.approx(0.3 / np.sqrt(2))
    identical = MeanDifference(0.0, 0.0, 19.0, 20)
    assert over_tasks([identical, identical]).p == 1.0
    half = over_tasks([identical, MeanDifference(1.0, 0.3, 19.0, 20)])
    assert (half.mean, half.error, half.df) == (0.5, 0.15, 19)  # all the noise is of one task
    assert over_tasks([identical, MeanDifference(1.0, None, 0.0, 1)]).error is None
    with pytest.raises(ValueError, match="needs one task"):
        over_tasks([])


def test_few_equal_differences_are_not_without_noise():
    """Two seeds that agree by chance would make those of another task certain."""
    noisy = over_seeds(np.array([0.01, -0.01]), np.zeros(2))
    flat, same = (over_seeds(np.full(2, value), np.zeros(2)) for value in (5.0, 0.0))
    assert over_tasks([flat, noisy]) == MeanDifference(2.5, None, 0.0, 2)
    assert over_tasks([flat, flat]).p == flat.p == 0.5
    assert over_tasks([same, noisy]).p == noisy.p


@pytest.mark.parametrize("noise", [(1, 1, 1, 1, 1), (3, 1, 1, 0.3, 0.3), (5, 0.2, 0.2)], ids=str)
@pytest.mark.parametrize("seeds", [3, 10])
def test_intervals_over_tasks_cover_the_mean(noise, seeds):
    """Within binomial error of 95%; with few seeds it may be more."""
    rng = np.random.default_rng([seeds, len(noise)])
    effects = np.linspace(-1, 2, len(noise))[:, None]
    differences = rng.normal(size=(STUDIES, len(noise), seeds)) * np.array(noise)[:, None] + effects
    zeros = np.zeros(seeds)
    found = [over_tasks([over_seeds(task, zeros) for task in study]) for study in differences]
    ends = np.array([each.interval() for each in found])
    covered = ((ends[:, 0] <= 0.5) & (ends[:, 1] >= 0.5)).sum()
    bounded = sum(each.upper() >= 0.5 for each in found)
    for count in (covered, bounded):
        assert count >= stats.binom.ppf(0.001, STUDIES, 0.95)
        if seeds >= significance.TRUSTED:
            assert count <= stats.binom.ppf(0.999, STUDIES, 0.95)
