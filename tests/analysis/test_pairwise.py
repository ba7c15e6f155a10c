"""Pairs of methods: a run that diverged is a result of its method, and no lucky seeds decide."""

import numpy as np
import pytest
from fake_records import planted
from planted_scores import contest, run
from report_study import made
from scipy import stats

from experiments.analysis.pairwise import pairs

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
