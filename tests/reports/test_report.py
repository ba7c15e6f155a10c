"""Reports: what is compared with what, by which test, refused, and not measured."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
from fake_records import planted, write
from report_study import LABELS, lines, made, make_study, methods, rendered, said, wrong
from scipy import stats

from experiments.analysis import pairwise
from experiments.reports import sheets, warnings
from experiments.reports.tables.cells import NONE
from lora_jax.data.metrics import label_metrics
from lora_jax.table import is_numeric

TWO = stats.t.ppf(0.975, 2)


def two_ends(line):
    """The width of an interval."""
    return float(line["high"]) - float(line["low"])


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path)


def test_settings_are_chosen_on_held_out_examples_and_scored_on_others(study):
    (contest,) = made(study)
    assert (contest.metric, contest.held_out, contest.model) == ("accuracy", False, "minilm")
    found = methods(study)
    assert list(found) == ["lora", "dora", "vera"]  # in the table's order
    assert [method.chosen.rate for method in found.values()] == [1e-3, 3e-3, 1e-3]
    assert [method.edge for method in found.values()] == ["", "highest", ""]
    assert {method.chosen_on for method in found.values()} == {"held-out"}
    assert found["lora"].scores() == pytest.approx({(0, 0): 80.0, (1, 0): 78.0, (2, 0): 79.0})
    assert {method.budget for method in found.values()} == {(3, 3)}
    text = said(study)
    assert "Better learning rates may lie beyond those tried: DoRA 0.003 (highest tried)." in text
    assert "same examples" not in text and "udgets" not in text


def test_numbers_are_scipy_s(study):
    own = [line for line in lines(study) if line["line"] == "method"]
    method = next(line for line in own if line["method"] == "lora")
    scores = np.array([80.0, 78.0, 79.0])
    low, high = stats.t.interval(0.95, 2, scores.mean(), stats.sem(scores))
    got = [float(method[key]) for key in ("mean", "sd", "low", "high")]
    np.testing.assert_allclose(got, [79.0, 1.0, low, high])
    assert (method["n"], method["settings_tried"], method["chosen"]) == ("3", "3", "0.001")
    assert (method["parameters_least"], method["seconds"]) == ("331776", "1.0")
    tests = {
        (line["test"], line["method"]): line for line in lines(study) if line["other"] == "lora"
    }
    dora = np.array([83.0, 81.0, 79.0])
    one, two = tests["seeds", "dora"], tests["seeds", "vera"]
    assert float(one["difference"]) == pytest.approx(2.0)
    p = [stats.ttest_rel(other, scores).pvalue for other in (dora, [55.0, 56.0, 54.0])]
    assert [float(one["p"]), float(two["p"])] == pytest.approx(p)
    both = (0.17, 0.19, 0.21), (0.20, 0.22, 0.21)
    right = [~np.array([wrong(s, seed) for seed, s in enumerate(shares)]) for shares in both]
    totals = (right[0].astype(int) - right[1]).sum(0)
    z = totals.sum() / np.sqrt((totals**2).sum())  # what the exact test tends to
    assert float(tests["examples", "dora"]["p"]) == pytest.approx(2 * stats.norm.sf(z), abs=0.05)
    t = 2 * float(tests["both", "vera"]["difference"]) / two_ends(tests["both", "vera"])
    assert float(tests["both", "vera"]["p"]) == pytest.approx(2 * stats.t.sf(abs(t) * TWO, 2))
    assert float(tests["both", "vera"]["p"]) < 0.02


def test_missing_predictions_are_not_measured(study):
    for path in (study / "dora").glob("*/predictions.npz"):
        path.unlink()
    text = rendered(made(study), "markdown").replace("\\", "")
    (row,) = (line for line in text.splitlines() if line.startswith("| DoRA | not told apart ‡ |"))
    assert row.count("| not measured | – |") == 2 and row.endswith("| 3 |")
    assert "predictions of 0 of 3 common seeds): DoRA and LoRA, DoRA and VeRA" in text
    found = {(line["method"], line["other"]): line for line in lines(study) if line["verdict"]}
    assert found["dora", "lora"]["test"] == "seeds"
    assert found["vera", "lora"]["test"] == "both"


def test_one_seed_is_compared_over_examples_alone(study):
    for seed in (1, 2):
        shutil.rmtree(study / "dora" / str(seed))
    text = rendered(made(study), "markdown")
    (row,) = (line for line in text.splitlines() if line.endswith("| 1 |"))
    assert row.startswith("| DoRA | ") and row.count("| one seed | – ") == 2
    kept = [line for line in lines(study) if line["decides"] == "yes" and line["other"] == "lora"]
    found = {line["method"]: line for line in kept}
    assert (found["dora"]["test"], found["dora"]["common"]) == ("examples", "1")
    first, second = ~wrong(0.2, 0), ~wrong(0.17, 0)
    discordant = (first & ~second).sum(), (second & ~first).sum()
    exact = stats.binomtest(int(discordant[0]), int(sum(discordant))).pvalue
    assert float(found["dora"]["p"]) == pytest.approx(exact)


def test_other_examples_are_refused(study):
    mask = wrong(0.2, 3)
    planted(study / "other", "dora", 3, LABELS[::-1].copy(), mask, rate=3e-3)
    with pytest.raises(ValueError, match="were scored on different examples: their labels differ"):
        rendered(made(study), "csv")
    shutil.rmtree(study / "other")
    planted(study / "other", "dora", 3, LABELS, mask, rate=3e-3, data_digest="another")
    with pytest.raises(ValueError, match="had different examples"):
        made(study)


def test_predictions_that_are_not_the_record_s_are_refused(study):
    shutil.copy(study / "vera" / "0" / "predictions.npz", study / "dora" / "0" / "predictions.npz")
    with pytest.raises(
        ValueError, match="dora/0: its predictions give accuracy 55, but its record says 83"
    ):
        rendered(made(study), "csv")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"changes": {"train.epochs": 9}}, "train.epochs is 3 in one and 9 in the other"),
        ({"changes": {"data.train": 50}}, "data.train is 8000 in one and 50 in the other"),
        ({"changes": {"start_from": "runs/a"}}, "start_from is null in one and a run in the other"),
        ({"weights_digest": "another"}, "began from different weights"),
        (
            {"changes": {"variant.name": "dora", "study.row": "lora"}},
            "'lora', but variant.name is lora in one and dora",
        ),
        ({"metric": "f1"}, "runs have different main metrics, accuracy in .*a and f1 in .*b: "),
    ],
)
def test_runs_that_differ_in_more_than_a_study_varies_are_refused(tmp_path, how, message):
    planted(tmp_path / "a", "lora", 0, LABELS, wrong(0.1, 0))
    planted(tmp_path / "b", "lora", 1, LABELS, wrong(0.2, 0), **how)
    with pytest.raises(ValueError, match=message):
        made(tmp_path)
    how = {"status": "failed", "note": "killed", **how}
    if how.get("changes", {}).keys() & {"train.epochs", "data.train"}:  # an attempt, no comparison
        shutil.rmtree(tmp_path / "b")
        planted(tmp_path / "b", "lora", 1, LABELS, wrong(0.2, 0), **how)
        assert len(methods(tmp_path)["lora"].settings) == 1


def test_a_study_may_vary_more_and_rank_is_a_setting(tmp_path):
    for batch in (16, 32):
        for rank in (4, 8):
            changes = {"train.batch_size": batch, "variant.rank": rank}
            share = 0.3 if (batch, rank) != (16, 4) else 0.1
            folder = tmp_path / f"{batch}_{rank}"
            planted(folder, "lora", 0, LABELS, wrong(share, 0), changes=changes)
    with pytest.raises(
        ValueError, match=r"\(if the study varies it, add --varies=train.batch_size\)"
    ):
        made(tmp_path)
    method = methods(tmp_path, varies=["train.batch_size"])["lora"]
    assert method.describe(method.chosen) == "0.002, batch_size 16, rank 4"
    assert len(method.settings) == 4 and method.edge == ""


def test_wins_ties_and_losses_over_tasks(tmp_path):
    shares = {"lora": 0.2, "dora": 0.2, "vera": 0.45}
    for task in ("sst2", "cola", "rte"):
        for method, share in shares.items():
            for seed in range(5):
                folder = tmp_path / task / method / str(seed)
                planted(folder, method, seed, LABELS, wrong(share, (seed, len(method))), task=task)
    contests = made(tmp_path)
    family = [pair for contest in contests for pair in pairwise.pairs(contest, 500, 0)]
    assert len(family) == 9
    (sheet,) = sheets.wins_sheets(family)
    assert sheet.title.endswith("3 contests")
    assert [list(row) for row in sheet.rows] == [
        ["LoRA", "3-3-0", "–", "0-3-0", "3-0-0"],
        ["DoRA", "3-3-0", "0-3-0", "–", "3-0-0"],
        ["VeRA", "0-0-6", "0-0-3", "0-0-3", "–"],
    ]
    assert pairwise.verdicts([pairwise.swapped(pair) for pair in family]) == [
        {"win": "loss", "loss": "win"}.get(each, each) for each in pairwise.verdicts(family)
    ]
    for pair in family:
        turned = pairwise.swapped(pair).tests
        for kind, test in pair.tests.items():
            if test is not None and test.low is not None:
                assert (turned[kind].low, turned[kind].high) == (-test.high, -test.low)
    cola = next(line for line in lines(tmp_path) if line["task"] == "cola")
    right = [np.eye(2)[np.where(wrong(0.2, (s, 4)), 1 - LABELS, LABELS)] for s in range(5)]
    scores = [100 * label_metrics.score(("matthews",), each, LABELS)["matthews"] for each in right]
    assert (cola["metric"], float(cola["mean"])) == ("matthews", pytest.approx(np.mean(scores)))


def test_runs_of_no_study_are_methods_by_variant_and_storage(tmp_path):
    for number, arg in enumerate(("variant=lora", "variant=dora", "variant=lora,storage=nf4")):
        for seed in range(2):
            scores = {"accuracy": 0.8 + number / 100 + seed / 50}
            folder = tmp_path / f"{number}_{seed}"
            write(folder, "quickstart", arg, scores, changes={"seed": seed}, parameters=1)
    found = methods(tmp_path)
    labels = {key: method.label for key, method in found.items()}
    assert labels == {"lora": "LoRA", "dora": "DoRA", "lora_nf4": "LoRA on NF4"}
    # Two differences of the same sign: p is that of the sign test.
    row = "not told apart ‡ | 1.000 | not measured | – | +1.00 | 0.500 | not measured | – | 2 |"
    assert f"| DoRA | {row}" in rendered(made(tmp_path), "markdown")


def test_the_reference(study, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    text = rendered(made(study), "markdown", "vera")
    assert "difference from VeRA" in text and re.search(
        r"\| LoRA \| better \| \S+ \| \+24.00 \[", text
    )
    with pytest.raises(ValueError, match="no method --reference=vora; nearest: '"):
        rendered(made(study), "markdown", "vora")
    planted(study / "cola", "lora", 0, LABELS, wrong(0.1, 0), task="cola")
    assert "The reference, vera, was not run here." in rendered(made(study), "rich", "vera")
    shutil.rmtree(study / "lora")
    assert "difference from DoRA" in rendered(made(study), "markdown")


def test_verdicts_of_one_seed_are_marked_and_explained(study):
    for method in ("lora", "dora", "vera"):
        for seed in (1, 2):
            shutil.rmtree(study / method / str(seed))
    contests = made(study)
    family = [pair for contest in contests for pair in pairwise.pairs(contest, 200, 0)]
    (sheet,) = sheets.wins_sheets(family)
    assert [row[1] for row in sheet.rows] == ["1-0-1 (2†)", "2-0-0 (2†)", "0-0-2 (2†)"]
    text = rendered(contests, "markdown", resamples=200)
    few = "cannot be a win in a family of 3"
    assert few not in text  # McNemar's test is exact
    matthews = [
        dataclasses.replace(pair, contest=dataclasses.replace(pair.contest, metric="matthews"))
        for pair in family
    ]
    assert few in " ".join(warnings.explain(contests, matthews, [], 20, True))
    assert "| worse † |" in text and "| better † |" in text
    assert "†: decided over examples alone" in text and "not for their methods" in text
    assert "$\\dagger$" in rendered(contests, "latex", resamples=200)


def test_verdicts_are_of_one_family_in_both_tables(study):
    contests = made(study)
    family = [pair for contest in contests for pair in pairwise.pairs(contest, 200, 0)]
    own = [pair.tests["both"].p for pair in family]
    by_hand = [1.0] * 3
    for rank, index in enumerate(np.argsort(own)):
        largest = max([by_hand[i] for i in np.argsort(own)[:rank]], default=0.0)
        by_hand[index] = min(1.0, max(largest, own[index] * (3 - rank)))
    assert pairwise.adjusted(family) == pytest.approx(by_hand)
    beside = sheets.reference_sheet(
        contests[0], contests[0].methods[0], [pairwise.swapped(pair) for pair in family]
    )
    assert [row[2] for row in beside.rows] == [sheets.p_text(p) for p in by_hand[:2]]
    found = {line["method"]: line for line in lines(study, resamples=200) if line["p_holm"]}
    assert float(found["vera"]["p_holm"]) == pytest.approx(by_hand[1])
    error = next(e for e in np.arange(1, 99, 0.01) if 1 - e / np.sqrt(2 + e**2) < 0.05 / 3)
    assert warnings.least_win(family) == pytest.approx(error, abs=0.01)  # 2 degrees
    text = rendered(contests, "markdown")
    assert (
        "All pairs of methods in all contests are one family" in text
        and "a pair that was not told apart" in text
    )


def test_tests_cover_other_training_sets_where_each_seed_draws_its_own(tmp_path):
    def add(task, train):
        for method in ("lora", "vera"):
            for seed in range(2):
                changes = {"data.draw": seed, "data.train": train}
                folder = tmp_path / task / method / str(seed)
                mask = wrong(0.2, seed)
                planted(folder, method, seed, LABELS, mask, task=task, changes=changes)
        return rendered(made(tmp_path), "markdown", resamples=100)

    none, some = "No test covers another training set.", "Training sentences are of several draws"
    text = add("sst2", train=100)
    assert f"{some}, so tests over seeds cover other training sets drawn" in text
    assert none not in text
    text = add("rte", train=0)  # all examples: none are drawn
    assert f"{some} in 1 of 2 contests, so" in text and none not in text
    shutil.rmtree(tmp_path / "sst2")
    text = rendered(made(tmp_path), "markdown", resamples=100)
    assert none in text and some not in text


def test_a_method_without_a_completed_run_has_no_rate(study):
    for seed in range(3):
        shutil.rmtree(study / "vera" / str(seed))
    for rate in ("0.0003", "0.001", "0.003"):
        shutil.rmtree(study / "vera" / rate)
    planted(study / "v", "vera", 0, LABELS, wrong(0.4, 7), rate=1e-3, status="failed", note="-")
    sheet = sheets.methods_sheet(made(study)[0])
    rates = [row[sheet.heads.index("learning rate")] for row in sheet.rows]
    assert rates[2] == NONE and is_numeric(rates)  # so it is sorted by number


def test_a_method_whose_runs_all_diverged_has_a_setting_and_no_mean(tmp_path):
    for seed in range(2):
        planted(tmp_path / f"lora{seed}", "lora", seed, LABELS, wrong(0.2, seed), rate=1e-3)
        how = {"status": "diverged", "best_step": None}
        write(tmp_path / f"dora{seed}", "glue", f"task=sst2,variant=dora,seed={seed}", {}, **how)
    assert methods(tmp_path)["dora"].chosen is not None
    found = said(tmp_path)
    assert "DoRA has no mean: 2 diverged without a score." in found
    assert "leaves out" not in found
    sheet = sheets.methods_sheet(made(tmp_path)[0])
    assert sheet.rows[1][:2] == ["DoRA", "no number"]
    assert is_numeric([row[1] for row in sheet.rows])


def test_a_run_that_diverged_counts_alike_in_a_method_s_mean_and_in_its_difference(tmp_path):
    """Or its method would have the better mean, and be the worse one, on one page."""
    shares = {"lora": (0.20, 0.22, 0.21), "dora": (0.18, 0.17, 0.51)}
    for method, own in shares.items():
        for seed, share in enumerate(own):
            lost = {"status": "diverged", "best_step": None} if share > 0.5 else {}
            planted(tmp_path / f"{method}{seed}", method, seed, LABELS, wrong(share, seed), **lost)
    mean, spread = 100 * (1 - np.mean(shares["dora"])), 100 * np.std(shares["dora"], ddof=1)
    of_lora = 100 * (1 - np.mean(shares["lora"]))
    found = lines(tmp_path)
    (line,) = (each for each in found if each["line"] == "method" and each["method"] == "dora")
    assert float(line["mean"]) == pytest.approx(mean) and line["n"] == "3"
    assert line["note"] == "1 diverged, with its last score"
    (test,) = (each for each in found if each["test"] == "seeds")
    between = float(test["difference"]) * (1 if test["method"] == "dora" else -1)
    assert between == pytest.approx(mean - of_lora)
    cell = f"{mean:.2f} ± {spread:.2f} (1 diverged, with its last score)"
    for form in ("rich", "markdown", "html"):
        assert cell in rendered(made(tmp_path), form)
    assert "(1 diverged, with its last score)" in rendered(made(tmp_path), "latex")
    text = said(tmp_path)
    assert "The mean of DoRA is not of completed runs alone: 1 diverged, with its last" in text


def test_equal_scores_have_no_interval(study):
    for seed in range(3):
        shutil.rmtree(study / "vera" / str(seed))
        planted(study / "vera" / str(seed), "vera", seed, LABELS, wrong(0.4, 7), rate=1e-3)
    assert sheets.interval(methods(study)["vera"]) is None
    (row,) = (r for r in sheets.methods_sheet(made(study)[0]).rows if r[0] == "VeRA")
    assert row[1:3] == ["60.00 ± 0.00", "–"]
    assert "All 3 scores of VeRA are equal: they have no interval" in said(study)


def test_rows_of_two_studies_are_counted_apart(tmp_path):
    for table, share in (("glue", 0.45), ("other", 0.1)):
        for method, own in (("lora", 0.2), ("vera", share)):
            for seed in range(5):
                folder = tmp_path / table / method / str(seed)
                changes = {"study.table": table}
                planted(folder, method, seed, LABELS, wrong(own, (seed, 1)), changes=changes)
    family = [pair for contest in made(tmp_path) for pair in pairwise.pairs(contest, 200, 0)]
    one, two = sheets.wins_sheets(family)
    assert one.title.startswith("glue, ") and two.title.startswith("other, ")
    assert one.title.endswith("1 contest") and two.title.endswith("1 contest")
    assert [row[1] for row in one.rows] == ["1-0-0", "0-0-1"]
    assert [row[1] for row in two.rows] == ["0-0-1", "1-0-0"]
