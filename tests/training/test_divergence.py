"""A run ends where its loss, weights or score are not finite, and keeps its good checkpoints."""

import math

import jax.numpy as jnp
import optax
import pytest
from small_training import fit

from lora_jax.records import metrics_log
from lora_jax.training import checkpoint

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_a_run_that_diverges_stops_and_keeps_its_last_good_checkpoint(tmp_path):
    _, outcome = fit(tmp_path, poison=11)
    assert outcome.diverged
    assert outcome.steps == 12  # the next step at which the loss is read
    with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
        assert saved.steps()[-1] == 10
    rows = metrics_log.read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(rows[-1]["loss"])
    assert rows[-1]["step"] == 12
    assert outcome.seconds > 0


def test_a_run_that_diverges_before_it_ever_reports_took_its_time(tmp_path):
    _, outcome = fit(tmp_path, poison=1)
    assert (outcome.diverged, outcome.steps) == (True, 3)
    assert outcome.seconds > 0


@pytest.mark.parametrize(("broken", "kept"), [(20, [14, 15]), (14, [7, 10]), (5, [])])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, broken, kept):
    """The loss of that step, which is of the weights before it, is still finite."""
    tx = optax.sgd(lambda count: jnp.where(count == broken - 1, jnp.inf, 1e-2))
    for _ in range(2):  # again, from the checkpoints, to the same end
        _, outcome = fit(tmp_path, tx=tx)
        assert (outcome.diverged, outcome.steps) == (True, broken)
        with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
            assert saved.steps()[-2:] == kept
    rows = metrics_log.read_metrics(tmp_path / "metrics.jsonl")
    assert rows[-1]["step"] == broken and math.isfinite(rows[-1]["loss"])


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_not_finite_ends_the_run(tmp_path, score):
    found = iter([0.5, score])
    _, outcome = fit(tmp_path, scores=lambda _: next(found))
    assert (outcome.diverged, outcome.steps, outcome.best_step) == (True, 14, 7)
    assert outcome.metrics_best == {"accuracy": 0.5}
    with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
        assert saved.steps() == [7, 10]
