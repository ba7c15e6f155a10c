"""The grid of learning rates, and the rule by which it grows."""

import itertools

import pytest

from experiments.studies import rates
from experiments.studies.protocol import Rates

RULE = Rates(per_decade=2, around=2, most_more=2)


def test_half_decades_around_the_middle():
    grid = [rates.rate(1e-3, place, RULE.per_decade) for place in rates.first(RULE)]
    assert grid == [1e-4, 3.2e-4, 1e-3, 3.2e-3, 1e-2]
    quarter = [rates.rate(2e-3, place, 4) for place in range(-4, 5)]
    assert quarter[::4] == [2e-4, 2e-3, 2e-2]
    ratios = [high / low for low, high in itertools.pairwise(quarter)]
    assert ratios == pytest.approx([10**0.25] * 8, rel=0.03)  # of two digits


def test_a_best_rate_at_an_edge_gives_all_one_more_on_that_side():
    start = rates.first(RULE)
    assert rates.grown(start, [0, 1, -1], RULE) == start
    assert rates.grown(start, [0, 2], RULE) == range(-2, 4)
    assert rates.grown(start, [-2, 2], RULE) == range(-3, 4)
    assert rates.grown(range(-2, 4), [2, 0], RULE) == range(-2, 4)


def test_the_grid_grows_so_often_and_no_further():
    places = rates.first(RULE)
    for _ in range(10):
        places = rates.grown(places, [max(places), min(places)], RULE)
    assert places == range(-4, 5)


def test_the_best_place_has_the_best_mean_and_is_the_lowest_of_equal_ones():
    scores = {1: [0.4, 0.6], 0: [0.5, 0.5], -1: [0.9], 2: []}
    assert rates.best_place(scores) == -1
    assert rates.best_place({1: [0.4, 0.6], 0: [0.5, 0.5]}) == 0
    assert rates.best_place(scores, lower_is_better=True) == 0
    assert rates.best_place({0: [], 1: []}) is None
