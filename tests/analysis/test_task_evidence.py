"""What a planted task can show: what the reference must beat, and methods that are another one."""

import numpy as np
import pytest
from fake_records import planted
from report_study import made

from experiments.analysis.task_evidence import ONE_ANSWER, UNTRAINED, equal_rows, evidence
from experiments.runs import predictions
from experiments.runs.predictions import Predictions

LABELS = np.repeat([0, 1, 1, 1], 100)
"""Whoever always answers 1 is right in 75%."""


def wrong(share, seed):
    return np.random.default_rng(seed).permutation(len(LABELS)) < round(share * len(LABELS))


def contest(root, shares):
    """Three seeds of each method, each wrong on so large a share of examples of its own."""
    for method, share in shares.items():
        for seed in (3, 4, 5):
            mask = wrong(share, 10 * seed + 7)
            planted(root / method / str(seed), method, seed, LABELS, mask, parameters=8)
    return made(root)


def answers(share):
    outputs = np.eye(2)[np.where(wrong(share, 1), 1 - LABELS, LABELS)]
    return {"sst2": Predictions(outputs, LABELS)}


def test_the_reference_must_beat_all_that_needs_no_adaptation(tmp_path):
    contests = contest(tmp_path, {"lora": 0.05, "head_only": 0.2})
    (found,) = evidence(contests, "lora", answers(0.15))
    assert {each.name: each.score for each in found.floors} == pytest.approx(
        {UNTRAINED: 85.0, ONE_ANSWER: 75.0, "head alone": 80.0}
    )
    assert found.score == pytest.approx(95.0) and found.best.name == UNTRAINED
    for floor in found.floors:
        assert floor.gain.mean == pytest.approx(95.0 - floor.score)
        assert floor.gain.low < floor.gain.mean < floor.gain.high
    assert found.blind == ""
    (without,) = evidence(contests, "lora", {"sst2": None})
    assert [each.name for each in without.floors] == [ONE_ANSWER, "head alone"]


@pytest.mark.parametrize(
    ("shares", "untrained", "said"),
    [
        ({"lora": 0.2}, 0.1, "LoRA ends below the untrained model (80.0 against 90.0)"),
        ({"lora": 0.4}, 0.9, "LoRA ends below the most frequent answer (60.0 against 75.0)"),
        (
            {"lora": 0.28},
            0.9,
            "LoRA is not shown to beat the most frequent answer (72.0 against 75.0)",
        ),
        (
            {"lora": 0.2, "head_only": 0.21},
            0.9,
            "LoRA is not shown to beat head alone (80.0 against 79.0)",
        ),
    ],
)
def test_a_task_shows_nothing_where_it_does_not(tmp_path, shares, untrained, said):
    (found,) = evidence(contest(tmp_path, shares), "lora", answers(untrained))
    assert found.blind == f"On SST-2, {said}"


@pytest.mark.parametrize(("noise", "same"), [(0.005, ["head_only", "lora", "vera"]), (0.05, [])])
def test_rows_are_equal_if_outputs_differ_by_less_than_a_hundredth_of_their_spread(
    tmp_path, noise, same
):
    """What is added to all classes of an example changes no answer, and counts for nothing."""
    (own,) = contest(tmp_path, {"head_only": 0.2, "lora": 0.2, "vera": 0.2, "dora": 0.25})
    rng = np.random.default_rng(0)
    for run in (run for method in own.methods if method.key == "vera" for run in method.runs):
        outputs, labels = run.predictions()["validation"]
        signs = rng.choice([-1.0, 1.0], (len(labels), 1))
        outputs = outputs + rng.normal(size=(len(labels), 1)) + noise * signs * [[0.5, -0.5]]
        predictions.write(run.folder, {"validation": Predictions(outputs, labels)})
    groups = [[each.key for each in group] for group in equal_rows(made(tmp_path)[0])]
    assert groups == [same or ["head_only", "lora"]]
