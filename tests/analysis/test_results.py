"""The records in the repository: whole, alike, and what their predictions say they are."""

from pathlib import Path

import numpy as np
import pytest

from experiments.analysis import choose_methods, collect_runs, recorded_runs
from experiments.reports import registered
from experiments.reports.tables import config_tables
from experiments.studies import registration
from experiments.studies.adherence import adherence
from lora_jax.data.metrics import label_metrics

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
STUDIES = sorted(path.parent for path in RESULTS.rglob("study.json"))
EACH = pytest.mark.parametrize("folder", STUDIES, ids=lambda it: it.relative_to(RESULTS).as_posix())


@EACH
def test_scores_are_those_of_the_predictions(folder):
    for run in recorded_runs.find(folder):
        kept = run.predictions()
        assert kept or run.record.config["data"]["validation"], run.folder
        for part, suffix in (("validation", ""), ("extra", "_extra")):
            if part in kept:
                require_scores(run.record.metrics_last, suffix, kept[part])


def require_scores(metrics, suffix, kept):
    """The scores of a part, whose names end with `suffix`, are those of its predictions."""
    names = [name for name in metrics if name.endswith(suffix) and name != "eval_loss"]
    plain = [name.removesuffix(suffix) for name in names if "loss" not in name]
    found = label_metrics.score(plain, *kept)
    for name in plain:
        assert found[name] == pytest.approx(metrics[name + suffix])
    if np.issubdtype(kept.labels.dtype, np.integer):
        entropies = -np.log(_softmax(kept.outputs)[range(len(kept.labels)), kept.labels])
        assert metrics["eval_loss" + suffix] == pytest.approx(entropies.mean(), rel=1e-4)
    else:
        errors = (kept.outputs[:, 0] - kept.labels) ** 2
        assert metrics["eval_loss" + suffix] == pytest.approx(errors.mean(), rel=1e-4)


def _softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def test_all_studies_together_stay_small():
    """Whoever clones the repository downloads them."""
    files = [each for folder in STUDIES for each in folder.rglob("*") if each.is_file()]
    assert sum(each.stat().st_size for each in files) < 12 * 2**20
    assert len(files) <= 6 * len(STUDIES), "python -m experiments.pack --results=..."


@EACH
def test_a_study_was_run_as_it_was_registered(folder):
    registered = registration.read(folder)
    assert registered is not None
    assert adherence(registered, recorded_runs.find(folder)).departures == []


@pytest.mark.parametrize("folder", [RESULTS / "against_lora_smollm2", RESULTS / "lora_scale/8"])
def test_a_study_can_be_reported(folder):
    runs = recorded_runs.find(folder)
    own, _ = collect_runs.select(runs, None, "full")
    name = own[0].study.table
    assert choose_methods.contests(own, {}, config_tables.varied(config_tables.tables(), [name]))
    (found,) = registered.found(folder, own)
    assert found.title == name and folder.is_relative_to(RESULTS / name)
