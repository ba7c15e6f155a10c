"""The records in the repository: whole, alike, and what their predictions say they are."""

import importlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from fake_records import write

import variants
from experiments import tune
from experiments.analysis import recorded_runs
from experiments.runs import predictions
from lora_jax.metrics import label_metrics

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
STUDIES = sorted(RESULTS.glob("*/*/"))  # `bench` has files alone


@pytest.mark.parametrize("run", recorded_runs.find(RESULTS), ids=lambda run: str(run.folder)[-20:])
def test_scores_are_those_of_the_predictions(run):
    kept = predictions.read(run.folder)
    if run.record.config["data"]["validation"]:  # it chose a learning rate: only its score is kept
        assert not kept
        return
    for part, suffix in (("validation", ""), ("extra", "_extra")):
        if part in kept:
            names = [n for n in run.record.metrics_last if n.endswith(suffix) and n != "eval_loss"]
            plain = [name.removesuffix(suffix) for name in names if "loss" not in name]
            found = label_metrics.score(plain, *kept[part])
            for name in plain:
                assert found[name] == pytest.approx(run.record.metrics_last[name + suffix])
            loss = -np.log(
                _softmax(kept[part].outputs)[range(len(kept[part].labels)), kept[part].labels]
            )
            assert run.record.metrics_last["eval_loss" + suffix] == pytest.approx(
                loss.mean(), rel=1e-4
            )


def _softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_a_study_gave_every_method_the_same(folder):
    """As many rates, each scored on held-out examples; the best of them; the same seeds."""
    module = importlib.import_module(f"configs.{folder.parent.name}")
    plan, tried, final = module.STUDY, defaultdict(dict), defaultdict(list)
    for run in recorded_runs.find(folder):
        assert run.completed
        rate, row = run.config.optimizer.learning_rate, run.study.row
        if run.config.data.validation:
            assert run.record.seed == plan["tuning_seed"]
            tried[row][rate] = run.record
        else:
            final[row].append((run.record.seed, rate))
    assert tried.keys() == final.keys() == set(module.ROWS)
    for row in module.ROWS:
        variant = module.get_config(f"row={row}").variant.name
        assert tuple(sorted(tried[row])) == variants.find(variant).suggested.tried
        best = tune.best_rate(tried[row])
        assert sorted(final[row]) == [(seed, best) for seed in plan["seeds"]]
    assert len({len(rates) for rates in tried.values()}) == 1


@pytest.mark.parametrize(("metric", "best"), [("accuracy", 1e-3), ("perplexity", 1e-4)])
def test_the_best_rate_is_the_smaller_of_equal_ones_and_of_a_run_that_completed(
    tmp_path, metric, best
):
    tried = {
        rate: write(tmp_path / f"{rate}", "glue", "", {metric: score}, metric=metric, status=status)
        for rate, score, status in (
            (1e-2, 4.0, "completed"),
            (1e-3, 4.0, "completed"),
            (1e-4, 3.0, "completed"),
            (1e-5, 2.0, "failed"),
            (1.0, 5.0, "diverged"),
        )
    }
    assert tune.best_rate(tried) == best


def test_development_sets_are_the_same_for_all():
    labels = defaultdict(list)
    for run in recorded_runs.find(RESULTS):
        if kept := predictions.read(run.folder):
            labels[run.place[2]].append(kept["validation"].labels)
    for same in labels.values():
        assert all(np.array_equal(each, same[0]) for each in same)
