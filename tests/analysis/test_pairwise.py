"""Pairs of methods: a run that diverged is a result of its method, and no lucky seeds decide."""

import numpy as np
import pytest
from planted_scores import contest, run

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
    assert sign * pair.tests["seeds"].difference == pytest.approx(differences.mean())
    assert pair.tests["examples"] is pair.tests["both"] is None
    assert "a diverged run has its last score alone" in pair.why


def test_a_method_whose_diverged_run_left_no_score_has_no_number():
    own = [run(number, score) for number, score in enumerate(LORA[1:], 1)]
    lost = {"dora": [run(0, None, "diverged"), *own]}
    (pair,) = pairs(contest("mrpc", {"lora": LORA, "dora": []}, lost), 100, 0)
    assert (pair.common, pair.decided_by) == (0, "")
    assert pair.why == "DORA: seed 0 diverged and left no score, so it has no number"
