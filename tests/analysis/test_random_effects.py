"""Random effects over tasks: metafor's tau² of published trials, the definition, and coverage."""

import numpy as np
import pytest
from scipy import stats

from experiments.analysis.random_effects import between_tasks, new_task

TRIALS = np.array(
    [
        (4, 119, 11, 128),
        (6, 300, 29, 274),
        (3, 228, 11, 209),
        (62, 13536, 248, 12619),
        (33, 5036, 47, 5761),
        (180, 1361, 372, 1079),
        (8, 2537, 10, 619),
        (505, 87886, 499, 87892),
        (29, 7470, 45, 7232),
        (17, 1699, 65, 1600),
        (186, 50448, 141, 27197),
        (5, 2493, 3, 2338),
        (27, 16886, 29, 17825),
    ]
)
"""BCG against tuberculosis (Colditz et al., 1994): ill and well with the vaccine, and without."""


def test_metafor_s_example():
    """The tau² that `rma(yi, vi, data=dat, method="PM")` of metafor gives for its dat.bcg."""
    ill, well, ill_without, well_without = TRIALS.T.astype(float)
    treated, control = ill + well, ill_without + well_without
    means = np.log(ill / treated) - np.log(ill_without / control)
    errors = np.sqrt(1 / ill - 1 / treated + 1 / ill_without - 1 / control)
    assert between_tasks(means, errors) == pytest.approx(0.3181, abs=5e-5)
    found = new_task(means, errors)
    weights = 1 / (errors**2 + between_tasks(means, errors))
    squares = (weights * (means - found.mean) ** 2).sum()
    assert squares == pytest.approx(12)  # Paule and Mandel's equation
    # Hartung and Knapp's own formula of the error
    assert found.error == pytest.approx(np.sqrt(squares / 12 / weights.sum()))
    assert (found.df, found.n) == (12, 13)


def test_equal_errors_have_a_closed_form():
    """With equal errors: the plain mean, and tau² the variance of the means less the errors'."""
    means, error = np.array([0.1, 1.4, -0.8, 2.2]), 0.3
    errors = np.full(4, error)
    assert between_tasks(means, errors) == pytest.approx(means.var(ddof=1) - error**2)
    theirs = stats.ttest_1samp(means, 0)
    found = new_task(means, errors)
    assert found.p == pytest.approx(theirs.pvalue)
    assert found.interval() == pytest.approx(tuple(theirs.confidence_interval()))


def test_tasks_that_agree_by_chance_do_not_narrow_the_interval():
    errors = np.array([0.3, 0.6, 0.9])
    found = new_task(np.full(3, 0.5), errors)
    assert between_tasks(np.full(3, 0.5), errors) == 0
    assert (found.mean, found.error) == (
        pytest.approx(0.5),
        pytest.approx((errors**-2).sum() ** -0.5),
    )


def test_two_tasks_are_too_few():
    assert new_task(np.array([1.0, 2.0]), np.ones(2)) is None
    with pytest.raises(ValueError, match="errors above 0, not 0"):
        new_task(np.arange(3.0), np.array([1.0, 0.0, 1.0]))


@pytest.mark.parametrize("between", [0.0, 0.5, 2.0])
def test_intervals_cover_the_mean_of_all_tasks(between):
    studies, tasks = 1000, 5
    rng = np.random.default_rng(round(10 * between))
    errors = np.array([0.2, 0.3, 0.3, 0.5, 0.8])
    means = 1.0 + rng.normal(size=(studies, tasks)) * np.sqrt(between**2 + errors**2)
    ends = np.array([new_task(each, errors).interval() for each in means])
    covered = ((ends[:, 0] <= 1.0) & (ends[:, 1] >= 1.0)).sum()
    assert covered >= stats.binom.ppf(0.001, studies, 0.95)
    if between > 1:  # otherwise they are wider, as tau² is often 0
        assert covered <= stats.binom.ppf(0.999, studies, 0.95)
