"""Contenders take turns; the time of a turn is that of the fastest work."""

import itertools

import pytest

from experiments.benchmarks.cases import Case, Contender
from experiments.benchmarks.turns import in_turns, process


def test_contenders_take_turns_and_only_the_fastest_work_of_a_turn_counts():
    said = []

    def contender(name, seconds):
        found = iter(seconds)

        def take(repeats):
            said.append((name, repeats))
            least = next(found)
            return [least + more for more in (2.0, 0.0, 1.0)]

        return take

    takes = {"one": contender("one", itertools.count(10)), "two": contender("two", [20, 21, 22])}
    assert in_turns(takes, 3, repeats=3, pause=0) == {"one": [10, 11, 12], "two": [20, 21, 22]}
    assert said == [("one", 3), ("two", 3)] * 3


@pytest.mark.slow
def test_a_process_works_as_often_as_it_is_asked_or_says_why_not():
    small = {"model": "tiny bert", "rows": 2, "tokens": 8}
    with process(Contender("ours", Case(**small))) as (take, facts):
        assert facts["flops"] > 0 and facts["growth_bytes"] >= 0
        assert [len(take(1)), len(take(3))] == [1, 3]
        assert all(each > 0 for each in take(2))
    for contender, why in (
        (Contender("ours", Case(method="lorra", **small)), "unknown variant 'lorra'"),
        (Contender("hand", Case(method="dora", **small)), "only LoRA is written by hand, not dora"),
        (Contender("hand", Case(work="generation")), "hand has no generation"),
    ):
        with (
            pytest.raises(ValueError, match=f"^{contender.side} cannot be timed: .*{why}"),
            process(contender),
        ):
            pass
