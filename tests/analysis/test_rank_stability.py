"""Stability of ranks: closed forms of two methods, enumeration, ties and clear orders."""

import itertools

import numpy as np
import pytest

from experiments.analysis import rank_stability
from experiments.analysis.rank_stability import Repeats, disjoint, settles, stability

RESAMPLES = 20_000
NEAR = 0.015
"""Four standard errors of a share of so many resamples."""


def test_two_methods_have_a_closed_form():
    """The first wins with 6 of 8 seeds, so one drawn seed repeats it so often."""
    scores = np.array([[1.0] * 6 + [0.0] * 2, [0.5] * 8])  # means 0.75 and 0.5
    one, three = stability(scores, (1, 3), RESAMPLES)
    assert one.with_another.first == pytest.approx((6**2 + 2**2) / 8**2, abs=NEAR)
    wins = 0.75**3 + 3 * 0.75**2 * 0.25  # two of three seeds
    assert three.with_another.order == pytest.approx(wins**2 + (1 - wins) ** 2, abs=NEAR)
    found = disjoint(scores, 1)
    assert (found.share, found.pairs) == (pytest.approx((15 + 1) / 28), 28)


def test_disjoint_sets_by_enumeration():
    scores = np.random.default_rng(0).normal(size=(3, 10))
    same = []
    for one in itertools.combinations(range(10), 3):
        for other in itertools.combinations(sorted(set(range(10)) - set(one)), 3):
            winners = [scores[:, each].sum(1).argmax() for each in (one, other)]
            same.append(winners[0] == winners[1])
    found = disjoint(scores, 3)
    assert found.share == pytest.approx(np.mean(same)) and found.pairs == len(same) / 2
    assert 0 < found.share < 1 and found.error > 0
    assert disjoint(scores[:, :6], 3).error is None  # without one seed there are no such pairs


def test_two_methods_that_win_as_often_show_no_error():
    """Without any one seed the share is the same: (n / 2 - 1) / (n - 1)."""
    scores = np.array([[1.0, 0.0] * 5, [0.0, 1.0] * 5])
    found = disjoint(scores, 1)
    assert found.share == pytest.approx(4 / 9) and found.error is None


def test_an_error_above_the_share_is_left_out():
    """It is made here seed by seed: of pairs of sets that both lack a seed."""
    scores = np.random.default_rng(46).normal(size=(3, 10))
    shares = [disjoint(np.delete(scores, each, 1), 3).share for each in range(10)]
    found = disjoint(scores, 3)
    assert np.sqrt(9 * np.var(shares)) > found.share and found.error is None


def test_equal_methods_share_their_places():
    scores = np.tile(np.random.default_rng(4).normal(size=6), (4, 1))
    (found,) = stability(scores, (2,), RESAMPLES)
    assert found.with_another.first == pytest.approx(1 / 4, abs=NEAR)
    assert found.with_another.order == pytest.approx(1 / 24, abs=NEAR)
    assert disjoint(scores, 3).share == pytest.approx(1 / 4)
    sums = np.array([[[0.1], [0.3]], [[0.2], [0.2]], [[0.3], [0.1]]])  # 0.6, but for roundings
    assert 0.1 + 0.2 + 0.3 > 0.3 + 0.2 + 0.1
    (found,) = stability(sums, (1,), RESAMPLES)
    assert found.with_another.first == pytest.approx(1 / 2, abs=NEAR)
    assert disjoint(np.repeat(sums, 2, axis=2), 1).share == pytest.approx(1 / 2)


def test_the_first_place_is_that_of_the_best():
    """One of three seeds has the two leaders the other way round."""
    scores = np.array([[4.0, 3.0, 4.0], [3.0, 4.0, 3.0], [2.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
    (found,) = stability(scores, (1,), RESAMPLES)
    assert found.with_another.first == pytest.approx(5 / 9, abs=NEAR)
    assert found.with_another.order == found.with_another.first


def test_over_tasks_means_count_and_seeds_of_tasks_are_drawn_apart():
    scores = np.array([[[2.0, -1.0], [0.0, 0.0]]] * 2)  # the first wins unless both tasks draw -1
    (found,) = stability(scores, (1,), RESAMPLES)
    assert found.with_another.first == pytest.approx((9 + 1) / 16, abs=NEAR)
    weighed = np.array([[[3.0], [0.0]], [[0.0], [2.0]]])
    assert stability(weighed, (1,), 10)[0].with_another.first == 1.0
    assert disjoint(np.repeat(weighed, 2, axis=2), 1).share == 1.0


def test_settles_is_the_number_from_which_on_the_first_repeats():
    def at(seeds, first):
        return rank_stability.Stability(seeds, Repeats(0, first))

    assert settles([at(1, 0.9), at(2, 0.7), at(5, 0.8), at(10, 0.9)]) == 5
    assert settles([at(1, 0.9), at(2, 0.79)]) is None
    assert settles([at(1, 0.7), at(2, 0.7)], share=0.7) == 1


def test_too_few_seeds_or_methods_are_errors():
    with pytest.raises(ValueError, match="two disjoint sets of 3 seeds need 6 seeds, not 5"):
        disjoint(np.ones((2, 5)), 3)
    with pytest.raises(ValueError, match="an order needs two methods"):
        stability(np.ones((1, 5)), (1,))
