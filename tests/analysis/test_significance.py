"""Tests of differences: against hand computations, scipy, and planted effects and nulls."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from experiments.analysis import bootstrap, significance

"""Of 200 nulls, at 5%: outside of this less than once in 100 times by chance."""


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
