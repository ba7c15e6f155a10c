"""Ratios are of neighbouring turns; exponents are slopes of logarithms."""

import math

import pytest

from experiments.benchmarks.cases import Case, Contender, Goal, Group, Ratio
from experiments.benchmarks.results import Curve, Found, Measured, exponent

SLOW = [1.0, 10.0, 1.0, 10.0, 1.0]
"""The machine was busy twice, for all sides."""


def group(*ratios, rows=1):
    own = {"ours": Contender("ours", Case(rows=rows)), "peft": Contender("peft", Case(rows=2))}
    return Group("a group", own, ratios)


def test_a_ratio_is_the_median_over_neighbouring_turns():
    seconds = {"ours": SLOW, "peft": [factor * each for factor, each in enumerate(SLOW, 1)]}
    (found,) = Measured.of(
        group(Ratio("peft", "ours", "peft")), seconds, {"ours": {}, "peft": {}}
    ).ratios
    assert (found.what, found.low, found.middle, found.high) == ("peft/ours", 2, 3, 4)


def test_ratios_of_facts_and_of_rows():
    facts = {"ours": {"flops": 30.0, "bytes": 8.0}, "peft": {"flops": 10.0, "growth": 2.0}}
    ratios = (
        Ratio("ours", "peft", "peft", "flops"),
        Ratio("ours", "peft", "peft", "bytes", of_below="growth"),
        Ratio("peft", "ours", "peft", per_row=True),
        Ratio("ours", "peft", "peft", "bytes"),
    )
    found = Measured.of(group(*ratios, rows=8), {"ours": [1.0], "peft": [1.0]}, facts).ratios
    assert [each.middle for each in found] == [3, 4, 4]  # PEFT's process has no fact `bytes`
    assert found[0].low == found[0].high == 3
    assert [each.what for each in found[1:]] == [
        "ours/peft, bytes/growth",
        "peft/ours, for each row",
    ]


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (Goal(1.0, 1.15), {0.99: False, 1.0: True, 1.2: True}),
        (Goal(1.02, 1.0), {1.03: False, 1.02: True, 0.5: True}),
        (Goal(0.0, 0.0), {0.0: True, 1.0: False}),
    ],
)
def test_a_goal_is_a_least_or_a_largest_value(goal, met):
    assert {ratio: goal.met(ratio) for ratio in met} == met
    assert {ratio: Found.of("", goal, [ratio]).met for ratio in met} == met
    assert Found.of("", None, [1.0]).met is None


def test_exponents_of_powers():
    at = [1, 2, 4, 8]
    assert exponent(at, [3 * x**1.5 for x in at]) == pytest.approx(1.5)
    assert exponent(at, [7.0] * 4) == pytest.approx(0)
    assert math.isnan(exponent(at, [0, 1, 2, 3]))
    theory = {"flops": [x**2 for x in at], "bytes": [5 * x for x in at]}
    curve = Curve("rank", "seconds", at, [x**1.9 for x in at], theory)
    assert (curve.exponent, curve.allowed) == (pytest.approx(1.9), pytest.approx(2))
