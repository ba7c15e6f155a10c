"""Which sides and groups are timed, and at which size."""

import pytest

from experiments.benchmarks import models, plan
from experiments.benchmarks.cases import Case, Contender, Group, Ratio
from experiments.benchmarks.plan import Plan, chosen, sides, smaller
from experiments.benchmarks.suites import gpu, memory, suite_of, train


@pytest.fixture
def installed(monkeypatch):
    """Only these packages can be imported."""

    def only(*names):
        known = lambda name: object() if name in names else None  # noqa: E731
        monkeypatch.setattr(plan.importlib.util, "find_spec", known)

    return only


def test_sides_that_a_suite_has(installed, capsys):
    installed("torch", "transformers", "peft")
    assert sides("train", ("peft", "hand"), []) == ("peft", "hand")
    assert sides("train", ("peft", "hand"), ["hand"]) == ("hand",)
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match=r"^--against=full: suite infer has merged$"):
        sides("infer", ("merged",), ["full"])
    with pytest.raises(ValueError, match=r"^--against=full: suite start has none$"):
        sides("start", (), ["full"])
    with pytest.raises(ValueError, match=r"^--against=pefd: .* nearest: 'peft'"):
        sides("train", ("peft",), ["pefd"])


def test_sides_that_are_not_installed(installed, capsys):
    installed("torch", "transformers")
    assert sides("train", ("peft", "hand"), []) == ("hand",)
    said = "without --against=peft: peft is not installed; `make bench` installs it\n"
    assert capsys.readouterr().err == said
    with pytest.raises(ValueError, match=r"^--against=peft: peft is not installed; `make bench`"):
        sides("train", ("peft", "hand"), ["peft"])


def test_suites_are_chosen_by_name():
    assert suite_of("gpu") is gpu
    with pytest.raises(ValueError, match=r"^--suite=trian: no such suite; nearest: 'train'"):
        suite_of("trian")


def test_groups_keep_the_contenders_of_the_wanted_ratios():
    own = {name: Contender(name, Case()) for name in ("ours", "peft", "hand")}
    ratios = Ratio("peft", "ours", "peft"), Ratio("ours", "hand", "hand")
    groups = [Group("minilm, dora", own, ratios), Group("timed", own)]
    first, second = chosen(groups, Plan(against=("hand",)))
    assert list(first.contenders) == ["ours", "hand"] and first.ratios == ratios[1:]
    assert second == groups[1]
    assert chosen(groups, Plan(against=("qwix",))) == [groups[1]]
    assert chosen(groups, Plan(against=("peft", "hand"), cases=("dora",))) == [groups[0]]
    with pytest.raises(ValueError, match=r"^--cases=dorra: no such group; nearest: 'minilm, dora'"):
        chosen(groups, Plan(cases=("dorra",)))


def test_the_smoke_size_has_tiny_models_of_the_same_family():
    for group in (*train.groups(), *gpu.groups()):
        for before, after in zip(
            group.contenders.values(), smaller(group).contenders.values(), strict=True
        ):
            assert after.case.model in models.RANDOM and after.case.model.startswith("tiny")
            assert models.family(after.case) == models.family(before.case)
            assert after.case.method == before.case.method and after.case.rows <= 2


def test_the_goals_of_the_training_suite():
    """Of each method beside PEFT, and of SmolLM2 at two shapes: all in float32."""
    musts = {
        group.name: ratio.goal.must
        for group in train.groups()
        for ratio in group.ratios
        if ratio.against == "peft"
    }
    assert {name: must for name, must in musts.items() if name.endswith("float32")} == {
        "minilm, lora on query, value, 32 x 48, float32": 1.0,
        "minilm, lora on all, 32 x 48, float32": 1.0,
        "minilm, dora on all, 32 x 48, float32": 1.4,
        "minilm, adalora on all, 32 x 48, float32": 1.1,
        "minilm, full, 32 x 48, float32": 0.9,
        "smollm2, lora on all, 4 x 128, float32": 1.0,
        "smollm2, lora on all, 1 x 512, float32": 1.0,
    }


@pytest.mark.parametrize("bent", [0.0, 0.5])
def test_the_most_rows_that_fit(bent):
    """Of a peak that grows along a line, or a little faster."""
    tried = []

    def peak(rows):
        tried.append(rows)
        return 100 + 10 * rows + bent * rows**1.2

    found = memory.most_rows(peak, room=2105, rows=4)
    assert peak(found) <= 2105 and peak(found * 1.06) > 2105
    assert len(tried) < 12
    assert memory.most_rows(lambda rows: 100 * rows, room=400, rows=4) == 4
