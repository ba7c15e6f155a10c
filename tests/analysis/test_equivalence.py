"""TOST against SciPy's one-sided t-tests, planted differences, and the sign test."""

import itertools

import numpy as np
import pytest
from scipy import stats

from experiments.analysis import significance
from experiments.analysis.significance import MeanDifference, over_seeds, over_tasks

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


def test_a_margin_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="a margin and an error above 0"):
        significance.tost(0.0, 0.0, 3, 1.0)
