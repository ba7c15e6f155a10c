"""A run is evaluated when it should be, and remembers its best evaluation and its target."""

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st
from killed import Killed
from small_training import fit

from lora_jax.records import metrics_log
from lora_jax.training import checkpoint
from lora_jax.training.loop_settings import Loop
from lora_jax.training.outcome import Outcome

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def evaluated_often(tmp_path_factory):
    """What a run came to that is evaluated at every other step, and its scores by step."""
    folder = tmp_path_factory.mktemp("often")
    with jax.numpy_dtype_promotion("standard"):
        _, outcome = fit(folder, evaluate_every=2, target=0.5)
    rows = metrics_log.read_metrics(folder / "metrics.jsonl")
    return outcome, {row["step"]: row["accuracy"] for row in rows if "accuracy" in row}


def test_the_best_evaluation_is_remembered(evaluated_often):
    outcome, scores = evaluated_often
    assert len(scores) == 10
    assert outcome.best_step == max(scores, key=scores.__getitem__)
    assert outcome.metrics_best["accuracy"] == max(scores.values())
    assert outcome.metrics_last["accuracy"] == scores[20]


@pytest.mark.parametrize("best_from", [12, 21])
def test_the_best_is_one_of_those_that_may_be(tmp_path, best_from):
    """Scores only fall, so the first that counts is the best."""
    falling = iter(range(100, 0, -1))
    state, outcome = fit(
        tmp_path,
        evaluate_every=4,
        scores=lambda _: float(next(falling)),
        best_from=best_from,
        chosen="best",
    )
    assert outcome.best_step == state.step == {12: 12, 21: 20}[best_from]


@pytest.mark.parametrize("steps, evaluations", [(20, 4), (20, 20), (17, 5), (7, 7), (100, 1)])
def test_evaluations_are_spread_evenly(steps, evaluations):
    loop = Loop(steps, evaluations=evaluations)
    found = [step for step in range(1, steps + 1) if loop.evaluates(step)]
    assert len(found) == evaluations and found[-1] == steps
    gaps = np.diff([0, *found])
    assert gaps.max() - gaps.min() <= 1


def test_an_evaluation_at_the_end_of_every_epoch():
    loop = Loop(steps=3 * 11, evaluations=3)
    assert [step for step in range(1, 34) if loop.evaluates(step)] == [11, 22, 33]


@pytest.mark.parametrize("target", [-1.0, 0.5, 2.0])
def test_the_step_at_which_a_score_is_reached_first(tmp_path, target, evaluated_often):
    if target == 0.5:
        outcome, scores = evaluated_often
    else:
        _, outcome = fit(tmp_path, target=target)
        scores = {each["step"]: each["score"] for each in outcome.evaluations}
    reached = [step for step, score in scores.items() if score >= target]
    assert len(reached) < len(scores) or target < 0
    assert outcome.target_step == (reached[0] if reached else None)
    assert (outcome.target_seconds is None) == (not reached)
    if reached:
        assert 0 < outcome.target_seconds <= outcome.seconds


def test_every_evaluation_with_the_seconds_until_then(tmp_path, evaluated_often):
    """Of a checkpoint from before they were kept, some would be missing: then there are none."""
    outcome, scores = evaluated_often
    assert [(each["step"], each["score"]) for each in outcome.evaluations] == [*scores.items()]
    seconds = [each["seconds"] for each in outcome.evaluations]
    assert seconds == sorted(seconds) and seconds[0] > 0 and seconds[-1] == outcome.seconds

    with pytest.raises(Killed):
        fit(tmp_path, killed_at=12)
    true_restore = checkpoint.Checkpoints.restore

    def restore(self, state):
        state, meta, step = true_restore(self, state)
        meta["outcomes"][0].pop("evaluations")
        return state, meta, step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "restore", restore)
        _, outcome = fit(tmp_path)
    assert outcome.evaluations is None and outcome.steps == 20


@given(
    st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=1, max_size=6),
    st.sampled_from(["max", "min"]),
)
def test_of_equal_scores_the_first_is_the_best_and_a_target_is_reached(scores, mode):
    """Whether a score is better if it is higher or if it is lower."""
    loop, outcome = Loop(len(scores), metric="score", mode=mode, target=0.3), Outcome()
    for step, score in enumerate(scores, 1):
        outcome.steps = step
        outcome.record_evaluation(loop, {"score": score, "at": step})
    best = scores.index((max if mode == "max" else min)(scores)) + 1
    assert outcome.best_step == outcome.metrics_best["at"] == best
    assert outcome.metrics_last["at"] == len(scores)
    reached = [n for n, x in enumerate(scores, 1) if (x >= 0.3 if mode == "max" else x <= 0.3)]
    assert outcome.target_step == (reached[0] if reached else None)
