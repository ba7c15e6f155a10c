"""Contenders take turns; ratios are of neighbouring turns."""

import itertools

import pytest

from experiments import bench
from experiments.benchmarks.cases import TRAIN, Case
from experiments.benchmarks.turns import Timing, contender, in_turns


def test_sides_take_turns_and_the_first_turn_does_not_count():
    said = []

    def side(name, seconds):
        found = iter(seconds)

        def take():
            said.append(name)
            least = next(found)
            return [least + more for more in (2.0, 0.0, 1.0)]

        return take

    takes = {"one": side("one", itertools.count(10)), "two": side("two", itertools.count(20))}
    assert in_turns(takes, 3, pause=0) == {"one": [11, 12, 13], "two": [21, 22, 23]}
    assert said == ["one", "two"] * 4


def test_a_ratio_is_the_median_over_neighbouring_turns():
    slow = [1.0, 10.0, 1.0, 10.0, 1.0]  # the machine was busy twice, for both sides
    timing = Timing(Case("lora"), {"ours": slow, "peft": [2 * each for each in slow]})
    assert timing.ratio("peft", "ours") == (2, 2, 2)
    assert timing.least("peft") == 2
    assert bench.row(timing) == "| lora, all six | 1000 | 2000 | 2.00 | 2.00 to 2.00 |"
    assert [each["seconds"] for each in bench.content([timing])["timings"]] == [timing.seconds]


def test_methods_are_chosen_by_name():
    assert bench.chosen([]) == list(TRAIN)
    assert {case.method for case in bench.chosen(["dora", "full"])} == {"dora", "full"}
    with pytest.raises(ValueError, match=r"^--cases=dorra: no such method; nearest: 'dora'"):
        bench.chosen(["dorra"])


@pytest.mark.slow
def test_a_contender_times_its_steps_or_says_why_not():
    with contender("ours", Case("lora", "query, value", 2, 8)) as take:
        assert all(each > 0 for each in take()) and len(take()) == 3
    with (
        contender("ours", Case("lorra", rows=2, tokens=8)) as take,
        pytest.raises(
            ValueError, match=r"^ours cannot be timed: ValueError: unknown variant 'lorra'"
        ),
    ):
        take()


@pytest.mark.parity
@pytest.mark.parametrize("case", TRAIN, ids=str)
def test_both_sides_learn_the_same_batch(case):
    """Two classes and a head that knows nothing: the first losses are near ln 2."""
    from experiments.benchmarks import our_step, peft_step
    from experiments.benchmarks.contender import batch

    small = Case(case.method, case.targets, 4, 16)
    for side in (our_step, peft_step):
        take = side.make(small, batch(small))
        losses = [take() for _ in range(6)]
        assert losses[0] == pytest.approx(0.69, abs=0.1)
        assert losses[-1] < losses[0]
