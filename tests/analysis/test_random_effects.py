"""Tasks as a sample: the closed form, and coverage however different the noise of tasks is."""

import numpy as np
import pytest
from scipy import stats

from experiments.analysis.significance import MeanDifference, between_tasks, new_task


def test_it_is_a_t_test_of_the_tasks():
    means = np.array([0.1, 1.4, -0.8, 2.2])
    theirs = stats.ttest_1samp(means, 0)
    found = new_task(means)
    assert (found.df, found.n) == (3, 4)
    assert found.p == pytest.approx(theirs.pvalue)
    assert found.interval() == pytest.approx(tuple(theirs.confidence_interval()))


@pytest.mark.parametrize("between", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("errors", [(0.2, 0.5, 2.0), (0.3, 0.3, 0.3), (0.2, 0.3, 0.3, 0.5, 0.8)])
def test_intervals_cover_the_mean_of_all_tasks(between, errors):
    studies = 2000
    rng = np.random.default_rng(round(10 * between))
    spread = np.sqrt(between**2 + np.square(errors))
    means = 1.0 + rng.normal(size=(studies, len(errors))) * spread
    ends = np.array([new_task(each).interval() for each in means])
    covered = ((ends[:, 0] <= 1.0) & (ends[:, 1] >= 1.0)).sum()
    assert covered >= stats.binom.ppf(0.001, studies, 0.95)
    if len(set(spread)) == 1:  # otherwise they are wider
        assert covered <= stats.binom.ppf(0.999, studies, 0.95)


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
