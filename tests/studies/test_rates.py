"""The grid of learning rates, and the rule by which it grows."""

import itertools
import types

import pytest

from configs import quickstart
from experiments.setup.config import fill
from experiments.studies import protocol
from experiments.studies.protocol import Rates

RULE = Rates(per_decade=2, around=2, most_more=2)


def test_half_decades_around_the_middle():
    grid = [protocol.rate_at(1e-3, place, RULE.per_decade) for place in protocol.first_places(RULE)]
    assert grid == [1e-4, 3.2e-4, 1e-3, 3.2e-3, 1e-2]
    quarter = [protocol.rate_at(2e-3, place, 4) for place in range(-4, 5)]
    assert quarter[::4] == [2e-4, 2e-3, 2e-2]
    ratios = [high / low for low, high in itertools.pairwise(quarter)]
    assert ratios == pytest.approx([10**0.25] * 8, rel=0.03)  # of two digits


def test_a_best_rate_at_an_edge_gives_all_one_more_on_that_side():
    start = protocol.first_places(RULE)
    assert protocol.grown(start, [0, 1, -1], RULE) == start
    assert protocol.grown(start, [0, 2], RULE) == range(-2, 4)
    assert protocol.grown(start, [-2, 2], RULE) == range(-3, 4)
    assert protocol.grown(range(-2, 4), [2, 0], RULE) == range(-2, 4)
    assert protocol.grown(range(-4, 5), [-4, 4], RULE) == range(-4, 5)  # as far as the rule goes


@pytest.fixture(scope="module")
def config():
    """A recorded config."""
    return fill(quickstart.get_config("size=smoke").to_dict())


@pytest.fixture
def record(config):
    """Makes records of runs that save the adapter of the last evaluation, or of the best one."""

    def make(last, metric="accuracy", status="completed", select="last", best=None):
        metrics = {"metrics_last": {metric: last}, "metrics_best": {metric: best}}
        own = {**config, "train": {**config["train"], "select": select}}
        return types.SimpleNamespace(metric=metric, status=status, config=own, **metrics)

    return make


def test_the_best_place_has_the_best_mean_and_is_the_lowest_of_equal_ones(record):
    scores = {1: [0.4, 0.6], 0: [0.5, 0.5], -1: [0.2, 0.3]}
    for metric, best in (("accuracy", 0), ("perplexity", -1)):
        tried = {place: [record(s, metric) for s in own] for place, own in scores.items()}
        assert protocol.best_place(tried) == best
    # Of 1,000 sentences each: equal sums, whose means differ by a rounding.
    right = {0: (813, 815), 1: (812, 816)}
    tried = {place: [record(n / 1000) for n in own] for place, own in right.items()}
    assert len({sum(each.metrics_last["accuracy"] for each in own) for own in tried.values()}) == 2
    assert protocol.best_place(tried) == 0


def test_the_score_is_that_of_the_adapter_that_a_run_saved(record):
    """A rate that ends badly may have the better best evaluation, and the reverse."""
    scores = {0: {"last": 0.6, "best": 0.7}, 1: {"last": 0.5, "best": 0.8}}
    for select, best in (("last", 0), ("best", 1)):
        tried = {place: [record(select=select, **own)] for place, own in scores.items()}
        assert protocol.best_place(tried) == best
        (of_one,) = protocol.saved_scores(tried[1])
        assert of_one == scores[1][select]


def test_a_place_where_a_run_did_not_end_is_not_the_best(record):
    diverged, unscored = record(0.9, status="diverged"), record(None)
    tried = {0: [record(0.5)], 1: [record(0.9), diverged], 2: [record(0.9), unscored]}
    assert protocol.best_place(tried) == 0
    assert protocol.best_place({1: [diverged]}) is None
