"""What pairs bring: closed forms of correlated scores."""

import numpy as np
import pytest

from experiments.analysis import paired_scores
from experiments.analysis.paired_scores import Paired


def test_the_ratio_is_one_less_the_correlation_for_equal_variances():
    rng = np.random.default_rng(0)
    first = rng.normal(size=20)
    other = rng.normal(size=20)
    first, other = (each - each.mean() for each in (first, other))
    other -= first * (first @ other) / (first @ first)  # uncorrelated
    first, other = (each / each.std(ddof=1) for each in (first, other))
    for correlation in (0.0, 0.75, -0.5):
        second = 80 + correlation * first + np.sqrt(1 - correlation**2) * other
        found = paired_scores.bought(first, second)
        assert found.ratio == pytest.approx(1 - correlation) and found.unpaired == pytest.approx(2)
        # The standard error of so many seeds without pairs is that of these 20 pairs.
        unpaired = found.unpaired / (20 / found.ratio)
        assert unpaired == pytest.approx((first - second).var(ddof=1) / 20)


def test_comparisons_together_have_the_mean_of_their_variances():
    found = paired_scores.pooled([Paired(1.0, 2.0), Paired(3.0, 4.0)])
    assert found.ratio == pytest.approx(4 / 6)
    with pytest.raises(ValueError, match="one comparison at least"):
        paired_scores.pooled([])
