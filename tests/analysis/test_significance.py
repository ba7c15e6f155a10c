"""Tests of differences: against hand computations, SciPy, and brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from experiments.analysis import bootstrap, significance
from experiments.analysis.significance import (
    MeanDifference,
    between_tasks,
    new_task,
    over_seeds,
    over_tasks,
)


def test_mcnemar_is_the_binomial_test_of_the_discordant_examples():
    first = np.array([True] * 8 + [False] * 1 + [True] * 20 + [False] * 5)
    second = np.array([False] * 8 + [True] * 1 + [True] * 20 + [False] * 5)
    assert significance.mcnemar(first, second) == pytest.approx(2 * (1 + 9) / 2**9)
    assert significance.mcnemar(second, first) == pytest.approx(2 * (1 + 9) / 2**9)
    assert significance.mcnemar(first, first) == 1.0
    with pytest.raises(ValueError, match="paired tests need equal shapes"):
        significance.mcnemar(first, second[1:])


def test_mcnemar_of_several_seeds_is_the_sign_flip_test_by_brute_force():
    rng = np.random.default_rng(0)
    for seeds, n in ((1, 9), (2, 8), (3, 9), (5, 7)):
        for _ in range(5):
            first, second = rng.random((2, seeds, n)) < np.array([0.8, 0.4])[:, None, None]
            totals = (first.astype(int) - second).sum(0)
            signs = np.array(list(itertools.product((-1, 1), repeat=n)))
            flipped = signs @ np.abs(totals)
            expected = np.mean(np.abs(flipped) >= abs(totals.sum()))
            assert significance.mcnemar(first, second) == pytest.approx(expected, abs=1e-12)


def test_over_examples_is_scipy_s_paired_bootstrap():
    rng = np.random.default_rng(1)
    labels = rng.integers(2, size=300)
    right = rng.random((2, 300)) < np.array([[0.85], [0.8]])
    outputs = [np.eye(2)[np.where(each, labels, 1 - labels)] for each in right]
    drawn = bootstrap.replicates("accuracy", outputs, labels, resamples=4000, seed=3)
    observed = np.array([right[0].mean() - right[1].mean()])
    found = significance.over_examples(observed, (drawn[0] - drawn[1])[None], 300)
    theirs = stats.bootstrap(
        tuple(right.astype(float)),
        lambda first, second, axis: first.mean(axis) - second.mean(axis),
        paired=True,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    error = 4 * theirs.standard_error * 2.7 / math.sqrt(2000)  # of two percentiles of 4,000
    ends = theirs.confidence_interval
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=error)
    again = bootstrap.replicates("accuracy", outputs, labels, resamples=4000, seed=3)
    np.testing.assert_array_equal(drawn, again)
    other = bootstrap.replicates("accuracy", outputs, labels, resamples=4000, seed=4)
    assert not np.array_equal(drawn, other)


def test_an_interval_without_0_is_a_small_p_value():
    rng = np.random.default_rng(0)
    for shift in np.linspace(0, 4, 30):
        drawn = rng.normal(shift, 1.0, (1, 2000))
        found = significance.over_examples(np.array([shift]), drawn, 100)
        assert (found.low > 0) == (found.p < 0.05) or abs(found.low) < 0.02


P_VALUES = st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=12)


@settings(max_examples=200)
@given(P_VALUES, st.floats(0.001, 0.5))
def test_holm_rejects_what_its_step_down_procedure_does(values, level):
    adjusted = significance.holm(values)
    assert [p is None for p in adjusted] == [p is None for p in values]
    known = sorted((p, i) for i, p in enumerate(values) if p is not None)
    rejected = set()
    for rank, (p, index) in enumerate(known):
        if p * (len(known) - rank) >= level:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(adjusted) if p is not None and p < level} == rejected
    for old, new in zip(values, adjusted, strict=True):
        assert old is None or (new is not None and old <= new <= 1.0)


def test_the_level_of_holm_s_first_of_14_tests_is_kept_with_unequal_noise():
    """As the docstring says: 1.25 times at most with 10 seeds; with fewer it is kept by far."""
    rng, level, studies = np.random.default_rng(3), 0.05 / 14, 200_000
    noise = np.array([3, 1, 1, 0.3, 0.3])[:, None]
    for seeds, most in ((3, 1.0), (10, 1.25), (20, 1.1)):
        # Means and variances of normal numbers are independent: draw both, for speed.
        variances = noise[:, 0] ** 2 * rng.chisquare(seeds - 1, (studies, 5)) / (seeds - 1) / seeds
        means = (noise[:, 0] / np.sqrt(seeds) * rng.normal(size=(studies, 5))).mean(1)
        df = np.full(studies, seeds - 1.0)
        if seeds >= significance.TRUSTED:
            df = variances.sum(1) ** 2 / (variances**2 / (seeds - 1)).sum(1)
            own = significance.degrees(list(variances[0]), [seeds - 1.0] * 5, seeds)
            assert own == pytest.approx(df[0], rel=1e-12)
        p = 2 * stats.t.sf(np.abs(means) / np.sqrt(variances.sum(1)) * 5, df)
        assert (p < level).mean() <= most * level * 1.1


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
