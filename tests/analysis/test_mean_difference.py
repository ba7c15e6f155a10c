"""Mean differences over seeds and over tasks: SciPy's t-tests, and coverage of intervals."""

import itertools

import numpy as np
import pytest
from scipy import stats

from experiments.analysis import significance
from experiments.analysis.significance import (
    MeanDifference,
    between_tasks,
    new_task,
    over_seeds,
    over_tasks,
)


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


MARGIN = 1.0


def test_tost_is_the_larger_of_scipy_s_two_one_sided_tests():
    rng = np.random.default_rng(0)
    for mean, seeds in ((0.0, 5), (0.7, 12), (-0.8, 20), (1.5, 4)):
        first, second = rng.normal(80, 1, (2, seeds)) + np.array([[mean], [0]])
        above = stats.ttest_1samp(first - second, -MARGIN, alternative="greater").pvalue
        below = stats.ttest_1samp(first - second, MARGIN, alternative="less").pvalue
        found = significance.equivalence_of_mean(over_seeds(first, second), MARGIN)
        assert found == pytest.approx(max(above, below), rel=1e-9)
        own = over_seeds(first, second)
        low, high = own.interval(0.1)
        assert (found < 0.05) == (low > -MARGIN and high < MARGIN)
        assert significance.at_most(own.mean, own.error, own.df, MARGIN) == pytest.approx(below)


def test_without_variance_the_sign_test_decides():
    scores = np.full(4, 80.0)
    halves = np.array(list(itertools.product((False, True), repeat=4)))

    def p(first, second):
        return significance.equivalence_of_mean(over_seeds(first, second), MARGIN)

    assert p(scores, scores) == p(scores + 0.9, scores) == halves.all(1).mean()
    assert p(scores + 1.1, scores) == 1.0
    assert p(scores[:1], scores[:1]) is None
    identical = [MeanDifference(0.0, 0.0, n - 1.0, n) for n in (5, 9)]
    assert significance.equivalence_of_mean(over_tasks(identical), MARGIN) == 2**-5


def test_it_is_a_t_test_of_the_tasks():
    means = np.array([0.1, 1.4, -0.8, 2.2])
    theirs = stats.ttest_1samp(means, 0)
    found = new_task(means)
    assert (found.df, found.n) == (3, 4)
    assert found.p == pytest.approx(theirs.pvalue)
    assert found.interval() == pytest.approx(tuple(theirs.confidence_interval()))


def test_the_sd_between_tasks_is_that_of_der_simonian_and_laird_where_errors_are_equal():
    means, error = np.array([0.1, 1.4, -0.8, 2.2]), 0.5
    weights = np.full(4, error**-2)
    q = weights @ (means - means.mean()) ** 2
    squared = (q - 3) / (weights.sum() - (weights @ weights) / weights.sum())

    def of(error):
        return between_tasks([MeanDifference(each, error, 9.0, 10) for each in means])

    assert of(error) == pytest.approx(np.sqrt(squared))
    assert of(2.0) == 0  # noise explains more than what is seen
    assert of(0.0) is of(None) is None
    assert between_tasks([MeanDifference(1.0, 0.1, 9.0, 10)] * 2) is None
