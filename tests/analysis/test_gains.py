"""Gains over a reference, on planted studies whose effects, nulls and equivalences are known."""

import numpy as np
import pytest
from planted_scores import contest, run, study
from scipy import stats

from experiments.analysis import power
from experiments.analysis.gains import all_pairs, changed_without_a_task, gains, verdict
from experiments.analysis.significance import new_task, over_seeds, over_tasks

NOISE = (0.5, 0.8, 1.2)


def of(made, **how):
    found = gains(made, reference="lora", **{"margin": 1.0, **how})
    return found, {each.key: each for each in found.methods}


def test_numbers_are_those_of_the_tests():
    made = study(np.random.default_rng(0), NOISE, 12, {"dora": 0.6, "vera": -0.4})
    found, methods = of(made)
    assert (found.reference, found.tasks, found.notes) == ("LORA", ("cola", "mrpc", "rte"), ())
    assert list(methods) == ["dora", "vera"] and methods["dora"].label == "DORA"
    for key, own in methods.items():
        scores = [{m.key: np.array(list(m.scores().values())) for m in c.methods} for c in made]
        for task, each in zip(found.tasks, scores, strict=True):
            theirs = stats.ttest_rel(each[key], each["lora"])
            one, ends = own.by_task[task], theirs.confidence_interval()
            assert (one.low, one.high, one.p) == pytest.approx((*ends, theirs.pvalue), rel=1e-9)
        tasks = [over_seeds(each[key], each["lora"]) for each in scores]
        mean, all_tasks = over_tasks(tasks), own.over_tasks
        assert (all_tasks.low, all_tasks.high) == mean.interval() and all_tasks.n == 12
        assert own.upper == mean.upper() < all_tasks.high
        such = new_task(np.array([t.mean for t in tasks])).interval()
        wider = max(such, mean.interval(), key=np.ptp)
        assert (own.new_task.low, own.new_task.high) == pytest.approx(wider)
        shift, critical = own.detectable / mean.error, stats.t.isf(0.05 / 2 / 2, mean.df)
        assert stats.nct.sf(critical, mean.df, shift) == pytest.approx(0.8, rel=1e-6)


def test_all_pairs_are_one_family():
    """By the formulas of Welch and Satterthwaite, of TOST and of Holm, on the planted scores."""
    tests = 7  # one more was registered
    effects = {"dora": 0.9, "vera": -0.6, "pissa": 0.1}
    made = study(np.random.default_rng(6), NOISE, 12, effects)
    scores = [{m.key: np.array(list(m.scores().values())) for m in c.methods} for c in made]
    pairs = [("dora", "lora"), ("vera", "lora"), ("pissa", "lora")]
    pairs += [("vera", "dora"), ("pissa", "dora"), ("pissa", "vera")]
    apart, same, means = [], [], []
    for first, second in pairs:
        differences = np.array([each[first] - each[second] for each in scores])
        variances = differences.var(axis=1, ddof=1) / 12
        mean, error = differences.mean(), np.sqrt(variances.sum()) / 3
        t = stats.t(variances.sum() ** 2 / (variances**2 / 11).sum())
        means.append(mean)
        apart.append(2 * t.sf(abs(mean) / error))
        same.append(max(t.sf((mean + 1) / error), t.cdf((mean - 1) / error)))

    def holm(values):
        order = np.argsort(values)
        steps = np.minimum(1, np.array(values)[order] * (tests - np.arange(len(values))))
        return np.maximum.accumulate(steps)[np.argsort(order)]

    found = all_pairs(made, reference="lora", margin=1.0, tests=tests)
    assert [each.reference_key for each in found] == ["lora", "dora", "vera", "pissa"]
    own = [(each, gain) for each in found for gain in each.methods]
    assert [(gain.key, each.reference_key) for each, gain in own] == pairs
    flat = [gain for _, gain in own]
    assert [each.over_tasks.mean for each in flat] == pytest.approx(means)
    assert [each.adjusted for each in flat] == pytest.approx(holm(apart))
    assert [each.equivalent for each in flat] == pytest.approx(holm(same))
    for gain, p, equal in zip(flat, holm(apart), holm(same), strict=True):
        direction = "better" if gain.over_tasks.mean > 0 else "worse"
        other = "equivalent" if equal < 0.05 else "undecided"
        assert gain.verdict == (direction if p < 0.05 else other)
    assert len({gain.verdict for gain in flat}) > 2


def test_families_of_nulls_and_of_margins_keep_their_level(monkeypatch):
    """Any false claim in a family of five: within binomial error of the level, or below it."""
    monkeypatch.setattr(power, "detectable", lambda *_: None)  # which takes most of the time
    rng, studies = np.random.default_rng(2), 150
    most = stats.binom.ppf(0.999, studies, 0.05)
    for effect, false in ((0.0, ("better", "worse")), (1.0, ("equivalent", "worse"))):
        claims = 0
        for _ in range(studies):
            _, methods = of(study(rng, (1.0, 1.5), 10, dict.fromkeys("abcde", effect), tasks="xy"))
            claims += any(each.verdict in false for each in methods.values())
        assert claims <= most


def test_the_verdict_is_a_difference_before_an_equivalence():
    assert verdict(0.5, 0.01, 0.01, 0.05) == "better"
    assert verdict(-0.5, 0.049, 0.01, 0.05) == "worse"
    assert verdict(0.5, 0.05, 0.049, 0.05) == "equivalent"
    assert verdict(0.5, 0.05, 0.05, 0.05) == "undecided"
    assert verdict(0.5, None, None, 0.05) == "undecided"


def test_only_common_seeds_count_and_missing_ones_are_said():
    late = {"dora": [run(3, 87.0), run(1, 82.0)]}
    _, methods = of([contest("cola", {"lora": [80.0, 81, 82, 85], "dora": []}, late)])
    assert methods["dora"].by_task["cola"].mean == 1.5 and methods["dora"].over_tasks.n == 2
    assert methods["dora"].notes == ("CoLA: 2 of 4 seeds in common",)
    one = of([contest("cola", {"lora": [80.0, 81], "dora": [81.0]})])[1]["dora"]
    assert one.by_task["cola"].low is one.adjusted is one.equivalent is None
    assert one.verdict == "undecided"


def test_a_diverged_run_without_a_score_leaves_the_method_without_a_number():
    """The mean of the other seeds would be that of the lucky ones."""
    scores = {"lora": [80.0, 81, 82, 83], "dora": [85.0, 86], "vera": [80.5, 81.5, 82.4, 83.4]}
    runs = {"dora": [run(2, None, "diverged"), run(3, None, "diverged")]}
    complete = contest("mrpc", {**scores, "dora": [85.0, 86.2, 87.0, 88.5]})
    found, methods = of([contest("cola", scores, runs), complete])
    own = methods["dora"]
    assert list(own.by_task) == ["mrpc"] and own.over_tasks.p < 0.001
    said = "seeds 2, 3 diverged and left no score, so it has no number"
    assert own.notes == (f"CoLA: {said}",)
    # It is in no family, so there the other one is alone.
    assert own.adjusted is own.equivalent is None and own.verdict == "undecided"
    assert methods["vera"].adjusted == methods["vera"].over_tasks.p
    found, methods = of([contest("cola", scores, runs)])
    assert list(methods) == ["vera"]
    assert found.notes == ("DORA has no number on any task", f"DORA on CoLA: {said}")


def test_methods_and_references_that_lack_a_task():
    made = study(np.random.default_rng(4), NOISE[:2], 5, {"dora": 3.0}, tasks=("cola", "mrpc"))
    made.append(contest("rte", {"lora": [60.0, 61.0]}))
    made.append(contest("sst2", {"dora": [90.0, 91.0]}))
    found, methods = of(made)
    assert found.tasks == ("cola", "mrpc", "rte")
    assert found.notes == ("LORA on SST-2: has no scored run",)
    assert methods["dora"].notes == ("RTE: has no scored run",)
    assert methods["dora"].verdict == "undecided" and methods["dora"].over_tasks.low > 0


def test_a_family_can_be_larger_than_the_methods_that_are_there():
    """As if the others had a p of 1: Holm's first p is multiplied by the size of the family."""
    made = study(np.random.default_rng(5), NOISE, 8, {"dora": 0.5, "vera": 0.0})
    _, methods = of(made, tests=14)
    ps = {key: each.over_tasks.p for key, each in methods.items()}
    first = min(ps, key=ps.get)
    assert methods[first].adjusted == pytest.approx(min(1, 14 * ps[first]))
    assert methods[first].detectable > of(made)[1][first].detectable
    _, methods = of(made[:2], tasks=("cola", "mrpc", "rte"))
    assert {(each.adjusted, each.verdict) for each in methods.values()} == {(None, "undecided")}


def test_contests_of_several_studies_are_an_error():
    one = contest("cola", {"lora": [80.0, 81.0], "dora": [81.0, 82.0]})
    with pytest.raises(ValueError, match="two contests on cola"):
        of([one, one])
    with pytest.raises(ValueError, match="several models: minilm and roberta"):
        of([one, contest("mrpc", {"lora": [80.0]}, model="roberta")])
    with pytest.raises(ValueError, match=r"no method 'lorra'.*nearest: 'lora'"):
        gains([one], reference="lorra", margin=1.0)


TASKS = ("cola", "mrpc", "rte")


def planted():
    """`lone` gains 4 points on RTE alone; `all` 2 on each task; `same` nothing."""
    effects = {"lone": 0.0, "all": 2.0, "same": 0.0}
    *others, rte = study(np.random.default_rng(0), (0.3, 0.3, 0.3), 20, effects, tasks=TASKS)
    scores = {each.key: list(each.scores().values()) for each in rte.methods}
    return [*others, contest("rte", scores | {"lone": [x + 4 for x in scores["lone"]]})]


def changed(made, tasks=3):
    def judge(contests):
        return gains(contests, reference="lora", margin=1.0, tests=3)

    return changed_without_a_task(made, judge(made), tasks, judge)


def test_a_gain_of_one_task_is_gone_without_it():
    made = planted()
    found = changed(made)
    assert list(found) == ["cola", "mrpc", "rte"]
    assert not found["cola"] and not found["mrpc"]
    (lone,) = found["rte"]
    assert (lone.key, lone.verdict) == ("lone", "equivalent")
    assert abs(lone.over_tasks.mean) < 0.3 and list(lone.by_task) == ["cola", "mrpc"]


def test_nothing_is_said_of_two_tasks_or_of_a_study_with_gaps():
    made = planted()
    assert changed(made[:2], tasks=2) is None
    assert changed(made, tasks=4) is None  # one is not trained yet
    gap = contest("rte", {"lora": [80.0, 81.0], "all": [82.0, 83.0]})
    assert changed([*made[:2], gap]) is None
