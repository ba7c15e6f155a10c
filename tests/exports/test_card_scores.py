"""The scores of a model card and their intervals."""

from types import SimpleNamespace

import fake_records
import numpy as np
import pytest
import scipy.stats

from experiments.exports.card_scores import Score, scores
from experiments.runs import predictions
from experiments.runs.finished_run import FinishedRun
from experiments.setup.config import of_record
from lora_jax.data.metrics import label_metrics

RNG = np.random.default_rng(0)
LABELS = RNG.integers(2, size=400)
WRONG = RNG.random(400) < 0.2
OUTPUTS = np.eye(2)[np.where(WRONG, 1 - LABELS, LABELS)]


def of(folder, record, *extra):
    """The run of a record, of which scores need the config and the names of the parts."""
    texts = SimpleNamespace(task=SimpleNamespace(extra=dict.fromkeys(extra)))
    experiment = SimpleNamespace(config=of_record(record.config), texts=texts)
    return FinishedRun(folder, record, experiment, None, None)


def test_the_interval_of_an_accuracy_is_the_binomials(tmp_path):
    """Of resamples with replacement, as many are right as of tosses of a coin."""
    record = fake_records.planted(tmp_path, "lora", 0, LABELS, WRONG)
    (found,) = scores(of(tmp_path, record))
    right = 1 - WRONG.mean()
    assert (found.name, found.metric, found.part) == ("accuracy", "accuracy", "validation")
    assert found.value == pytest.approx(right, abs=1e-12) and found.examples == 400
    ends = scipy.stats.binom.ppf([0.025, 0.975], 400, right) / 400
    np.testing.assert_allclose([found.low, found.high], ends, atol=1 / 400 + 1e-9)


def test_scores_of_other_parts_and_of_several(tmp_path):
    """Each part has its own interval, from its own predictions; a mean over parts has none."""
    half = {"accuracy": 1 - WRONG.mean(), "accuracy_mismatched": 1.0, "accuracy_m_mm": 0.9}
    record = fake_records.write(tmp_path, "glue", "task=mnli,variant=lora", {**half, "bleu": 3.0})
    other = predictions.Predictions(np.eye(2)[LABELS], LABELS)
    kept = {"validation": predictions.Predictions(OUTPUTS, LABELS), "mismatched": other}
    predictions.write(tmp_path, kept)
    found = scores(of(tmp_path, record, "mismatched"))
    assert [(each.metric, each.part) for each in found] == [
        ("accuracy", "validation"),
        ("accuracy", "mismatched"),
        ("accuracy_m_mm", None),
        ("bleu", "validation"),
    ]
    assert found[0].low < found[0].value < found[0].high
    # All resamples of right answers are right, which says nothing of how sure 1.0 is.
    assert (found[1].low, found[1].high, found[1].examples) == (None, None, 400)
    assert found[2] == Score("accuracy_m_mm", "accuracy_m_mm", None, 0.9)
    assert found[3] == Score("bleu", "bleu", "validation", 3.0)


def test_a_loss_per_token_resamples_texts(tmp_path):
    """The standard error of a ratio of sums over texts, by the delta method."""
    tokens = RNG.integers(5, 40, size=900).astype(np.float64)
    logs = -tokens * RNG.uniform(1.5, 2.5, size=900)
    value = -logs.sum() / tokens.sum()
    record = fake_records.write(tmp_path, "instruct", "", {"token_loss": value})
    kept = predictions.Predictions(logs[:, None], tokens)
    predictions.write(tmp_path, {"validation": kept})
    (found,) = scores(of(tmp_path, record))
    spread = (-logs - value * tokens).std() / tokens.mean() / 900**0.5
    ends = value + spread * scipy.stats.norm.ppf([0.025, 0.975])
    np.testing.assert_allclose([found.low, found.high], ends, atol=0.05 * spread * 2)


def test_no_interval_without_predictions(tmp_path):
    record = fake_records.write(tmp_path, "glue", "task=sst2,variant=lora", {"accuracy": 0.8})
    assert scores(of(tmp_path, record)) == [Score("accuracy", "accuracy", "validation", 0.8)]


def test_predictions_that_give_another_score(tmp_path):
    values = label_metrics.score(("accuracy",), OUTPUTS, LABELS)
    wrong = {name: value - 0.1 for name, value in values.items()}
    how = {"outputs": OUTPUTS, "labels": LABELS}
    record = fake_records.write(tmp_path, "glue", "task=sst2,variant=lora", wrong, **how)
    with pytest.raises(ValueError, match=r"its predictions give accuracy .* but its record says"):
        scores(of(tmp_path, record))
