"""Pairs of methods, and runs that share a draw of the examples: what counts and what decides."""

import numpy as np
import pytest
from fake_records import planted
from planted_scores import contest, run
from report_study import LABELS, lines, made, wrong
from scipy import stats

from experiments.analysis import collect_runs, paired_scores
from experiments.analysis.pairwise import pairs


@pytest.mark.parametrize(
    ("numbers", "groups", "shared", "seeds"),
    [
        ([(1, 0), (0, 0)], [[(0, 0)], [(1, 0)]], False, False),  # one draw: seeds
        ([(1, 1), (0, 0)], [[(0, 0)], [(1, 1)]], False, False),  # as in a registered study
        ([(0, 1), (0, 0)], [[(0, 0)], [(0, 1)]], False, True),
        ([(2, 1), (1, 0), (0, 0)], [[(0, 0), (1, 0)], [(2, 1)]], True, False),
        ([(1, 1), (0, 1), (0, 0)], [[(0, 0)], [(0, 1), (1, 1)]], True, True),
    ],
)
def test_draws_count_where_there_are_several(numbers, groups, shared, seeds):
    assert collect_runs.runs_by_draw(numbers) == groups
    assert (collect_runs.share_draws(numbers), collect_runs.draws_share_seeds(numbers)) == (
        shared,
        seeds,
    )
    found = collect_runs.means_of_draws({number: float(sum(number)) for number in numbers})
    np.testing.assert_array_equal(found, [np.mean([sum(n) for n in own]) for own in groups])


def runs(scores):
    """The runs of one method, (draws, seeds)."""
    made = []
    for (draw, seed), score in np.ndenumerate(scores):
        made.append(run(seed, float(score)))
        made[-1].number = (seed, draw)
    return made


def test_pairs_and_noise_are_those_of_draws():
    scores = 80 + np.random.default_rng(0).normal(size=(2, 4, 3))
    first, second = scores.mean(2)
    own = contest(
        "rte", {"lora": [], "vera": []}, {"lora": runs(scores[0]), "vera": runs(scores[1])}
    )
    (pair,) = pairs(own, 100, 0)
    theirs = stats.ttest_rel(first, second)
    assert (pair.common, pair.tests["seeds"].n) == (4, 4)
    assert pair.tests["seeds"].p == pytest.approx(theirs.pvalue)
    assert pair.tests["seeds"].low == pytest.approx(theirs.confidence_interval().low)
    assert pair.generalises_to("seeds").startswith("new draws")
    assert pair.generalises_to("examples") == "new examples, the same models"
    (found,) = paired_scores.noise_of_seeds([own], "lora")
    assert found.mean.n == 4
    assert found.deviations == {"RTE": pytest.approx((first - second).std(ddof=1))}


def test_tests_over_examples_and_both_take_the_means_of_draws(tmp_path):
    shares = {"lora": (0.3, 0.2, 0.3), "vera": (0.2, 0.2, 0.1)}
    for method, own in shares.items():
        for (seed, draw), share in zip(((0, 0), (1, 0), (2, 1)), own, strict=True):
            changes = {"data.draw": draw, "data.train": 100}
            mask = wrong(share, 2 * seed + (method == "vera"))
            planted(tmp_path / f"{method}{seed}", method, seed, LABELS, mask, changes=changes)
    found = {line["test"]: line for line in lines(tmp_path) if line["line"] == "test"}
    means = (10 + 0) / 2, 20.0  # VeRA's points over LoRA's, of each draw
    differences = [float(each["difference"]) for each in found.values()]
    assert differences == pytest.approx([12.5] * 3)
    assert float(found["seeds"]["p"]) == pytest.approx(stats.ttest_1samp(means, 0).pvalue)
    assert [found[kind]["n"] for kind in ("seeds", "both", "examples")] == ["2", "2", "200"]
    assert found["seeds"]["generalises_to"] == "new seeds, the same examples"


LORA = [80.0, 81.0, 79.0, 80.5, 82.0, 80.0, 81.5, 79.5]


def test_a_diverged_run_counts_with_its_last_score():
    """DoRA gains 2 points with 6 of 8 seeds, and ends at 50 with the others."""
    gained = [score + 2 for score in LORA[2:]]
    broken = [run(number, 50.0, "diverged") for number in range(2)]
    own = [run(number, score) for number, score in enumerate(gained, 2)]
    (pair,) = pairs(contest("mrpc", {"lora": LORA, "dora": []}, {"dora": [*broken, *own]}), 100, 0)
    differences = np.array([50.0, 50.0, *gained]) - LORA
    sign = 1 if pair.first.key == "dora" else -1
    assert pair.common == 8
    assert sign * pair.tests["seeds"].mean == pytest.approx(differences.mean())
    assert pair.tests["examples"] is pair.tests["both"] is None
    assert "a diverged run has its last score alone" in pair.why


def test_a_test_over_both_has_the_error_of_crossed_seeds_and_examples(tmp_path):
    """By the two-way analysis of variance, whose interaction counts once."""
    seeds, labels = (3, 4, 5), np.repeat([0, 1], 60)
    wrong = np.random.default_rng(0).random((2, 3, 120)) < np.array([0.1, 0.3])[:, None, None]
    for method, own in zip(("lora", "dora"), wrong, strict=True):
        for seed, mask in zip(seeds, own, strict=True):
            planted(tmp_path / method / str(seed), method, seed, labels, mask, parameters=8)
    (pair,) = pairs(made(tmp_path)[0], 200, 0)
    sign = 1 if pair.first.key == "lora" else -1
    d = 100.0 * sign * (wrong[1].astype(float) - wrong[0])
    by_seed, by_example = d.mean(1), d.mean(0)
    rest = ((d - by_seed[:, None] - by_example + d.mean()) ** 2).sum() / (2 * 119)
    squares = 120 * by_seed.var(ddof=1), 3 * by_example.var(ddof=1)
    error = np.sqrt(max(sum(squares) - rest, *squares) / d.size)
    found = pair.tests["both"]
    assert pair.decided_by == "both" and found.mean == pytest.approx(d.mean())
    assert found.high - found.low == pytest.approx(2 * stats.t.isf(0.025, 2) * error)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(d.mean()) / error, 2))


def test_a_method_whose_diverged_run_left_no_score_has_no_number():
    own = [run(number, score) for number, score in enumerate(LORA[1:], 1)]
    lost = {"dora": [run(0, None, "diverged"), *own]}
    made = contest("mrpc", {"lora": LORA, "dora": []}, lost)
    (pair,) = pairs(made, 100, 0)
    assert (pair.common, pair.decided_by) == (0, "")
    assert pair.why == "DORA: seed 0 diverged and left no score, so it has no number"
    assert [method.counted() for method in made.methods if method.key == "dora"] == [[]]
