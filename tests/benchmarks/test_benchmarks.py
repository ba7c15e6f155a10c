"""Which groups are timed, in which turns, and the ratios, exponents and tables of them."""

import dataclasses
import itertools
import json
import math
import sys

import pytest

from benchmarks import cases, results
from benchmarks.cases import Case, Contender, Goal, Group, Plan, Ratio, chosen, sides
from benchmarks.results import Curve, Found, Measured, content, exponent
from benchmarks.suites import training
from benchmarks.turns import in_turns, process, seconds_of
from lora_jax.files import marked_documents

SLOW = [1.0, 10.0, 1.0, 10.0, 1.0]
"""The machine was busy twice, for all sides."""


def group(*ratios, rows=1):
    own = {"ours": Contender("ours", Case(rows=rows)), "peft": Contender("peft", Case(rows=2))}
    return Group("a group", own, ratios)


def test_a_ratio_is_the_median_over_neighbouring_turns():
    seconds = {"ours": SLOW, "peft": [factor * each for factor, each in enumerate(SLOW, 1)]}
    (found,) = Measured.of(group(Ratio("peft", "ours", "peft")), seconds, {}).ratios
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
    assert {ratio: Found.of("", goal, [ratio]).met for ratio in met} == met


def test_exponents_of_powers():
    at = [1, 2, 4, 8]
    assert exponent(at, [3 * x**1.5 for x in at]) == pytest.approx(1.5)
    assert math.isnan(exponent(at, [0, 1, 2, 3]))
    theory = {"flops": [x**2 for x in at], "bytes": [5 * x for x in at]}
    curve = Curve("rank", "seconds", at, [x**1.9 for x in at], theory)
    assert (curve.exponent, curve.allowed) == (pytest.approx(1.9), pytest.approx(2))


def test_sides_that_a_suite_has_and_that_are_installed(monkeypatch, capsys):
    known = ("torch", "transformers")
    monkeypatch.setattr(cases.importlib.util, "find_spec", lambda name: name in known or None)
    assert sides("train", ("hand",), []) == sides("train", ("full", "hand"), ["hand"]) == ("hand",)
    for wanted, said in (
        ("full", r"^--against=full: suite infer has peft, merged$"),
        ("peft", r"^--against=peft: peft is not installed; `make bench`"),
    ):
        with pytest.raises(ValueError, match=said):
            sides("infer", ("peft", "merged"), [wanted])
    assert sides("infer", ("peft", "merged"), []) == ("merged",)
    assert "without --against=peft: peft is not installed" in capsys.readouterr().err


def test_groups_keep_the_contenders_of_the_wanted_ratios():
    own = {name: Contender(name, Case()) for name in ("ours", "peft", "hand")}
    ratios = Ratio("peft", "ours", "peft"), Ratio("ours", "hand", "hand")
    groups = [Group("minilm, dora", own, ratios), Group("timed", own)]
    first, second = chosen(groups, Plan(against=("hand",)))
    assert list(first.contenders) == ["ours", "hand"] and first.ratios == ratios[1:]
    assert second == groups[1]
    assert chosen(groups, Plan(against=("peft", "hand"), cases=("dora",))) == [groups[0]]
    with pytest.raises(ValueError, match=r"^--cases=dorra: no such group; nearest: 'minilm, dora'"):
        chosen(groups, Plan(cases=("dorra",)))


@pytest.mark.parametrize("bent", [0.0, 0.5])
def test_the_most_rows_that_fit(bent):
    """Of a peak that grows along a line, or a little faster."""

    def peak(rows):
        return 100 + 10 * rows + bent * rows**1.2

    found = training.most_rows(peak, room=2105, rows=4)
    assert peak(found) <= 2105 and peak(found * 1.06) > 2105
    assert training.most_rows(lambda rows: 100 * rows, room=400, rows=4) == 4


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
    for contender, why in (
        (Contender("hand", Case(method="dora", **small)), "only LoRA is written by hand, not dora"),
        (Contender("hand", Case(work="generation")), "hand has no generation"),
    ):
        with (
            pytest.raises(ValueError, match=f"^hand cannot be timed: .*{why}"),
            process(contender),
        ):
            pass


def test_commands_are_timed_to_their_end_or_until_they_have_written_a_line(tmp_path):
    line, end = tmp_path / "line", tmp_path / "end"
    text = "import pathlib, sys; [pathlib.Path(each).write_text('x\\n') for each in sys.argv[1:]]"
    assert seconds_of([sys.executable, "-c", text, str(line), str(end)], {}, line) > 0
    assert end.exists() and seconds_of([sys.executable, "-c", ""], {}) > 0
    fails = [sys.executable, "-c", "raise SystemExit('no disk')"]
    for until in (None, tmp_path / "none"):
        with pytest.raises(ValueError, match="no disk"):
            seconds_of(fails, {}, until)
    with pytest.raises(ValueError, match="none yet"):
        seconds_of([sys.executable, "-c", "print('none yet')"], {}, tmp_path / "none")


MEASURED = Measured(
    "a group",
    {"ours": dataclasses.asdict(Contender("ours", Case()))},
    {"ours": [0.25, 0.5, 0.75]},
    {"ours": {"flops": 2.5e9}},
    [
        Found.of("peft/ours", Goal(1.0, 1.5), [1.25, 1.5, 2.0, 2.5, 9.0]),
        Found.of("ours/hand", Goal(1.02, 1.0), [1.5]),
        Found.of("DoRA/LoRA", Goal(1.15, 1.05), [1.1502]),
        Found.of("NF4/LoRA", None, [1.25]),
    ],
    [Curve("tokens", "seconds", [1, 10], [2, 20], {"flops": [1, 100]})],
)
SUMMARY = """\
| group | what | ratio | quartiles | must be | may reach |
| --- | --- | --- | --- | --- | --- |
| a group | peft/ours | 2.00 | 1.50 to 2.50 | ≥ 1 | 1.5 |
| a group | ours/hand | 1.50 |  | ≤ 1.02, missed | 1 |
| a group | DoRA/LoRA | 1.1502 |  | ≤ 1.15, missed | 1.05 |
| a group | NF4/LoRA | 1.25 |  |  |  |

| of | over | from | to | exponent | in theory |
| --- | --- | --- | --- | --- | --- |
| seconds | tokens | 1 | 10 | 1.00 | 2.00 |"""


def test_a_document_gets_the_tables_of_its_markers(tmp_path):
    whole = json.dumps(content("train", Plan(turns=3), [MEASURED]))
    (tmp_path / "train.json").write_text(whole, encoding="utf-8")
    before = "# A\n<!-- bench: train -->\nold\n<!-- /bench -->\nB\n"
    after = f"# A\n<!-- bench: train -->\n{SUMMARY}\n<!-- /bench -->\nB\n"
    assert results.fill(before, tmp_path) == after == results.fill(after, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"memory\.json"):
        results.fill("<!-- bench: memory -->\n<!-- /bench -->\n", tmp_path)


@pytest.mark.parametrize("path", sorted(results.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_documents_have_the_committed_results(path):
    texts = [each.read_text(encoding="utf-8") for each in marked_documents.files()]
    marker = "methods" if path.stem == "methods" else f"bench: {path.stem}"
    (shows,) = [text for text in texts if f"<!-- {marker} -->" in text]
    assert results.fill(shows) == shows
