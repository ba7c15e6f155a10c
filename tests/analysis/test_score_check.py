"""Scores are those of the chosen evaluation, and of the stored predictions."""

import dataclasses
import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_records import planted, write

from experiments.analysis import recorded_runs, scored_examples
from experiments.analysis.choose_methods import contests
from experiments.reports.figures.scores import panels
from experiments.reports.tables import cells, config_tables
from experiments.runs import predictions
from experiments.runs.predictions import Predictions
from experiments.sweeps.search.search import score

LABELS = np.tile([0, 1], 50)
RIGHT = np.eye(2)[LABELS]


def right(n):
    """Outputs of which the first n are right."""
    return np.eye(2)[np.where(np.arange(100) < n, LABELS, 1 - LABELS)]


def checked(folder):
    """Whether the record in a folder agrees, or what is said of it."""
    (run,) = recorded_runs.find(folder)
    try:
        scored_examples.require_agreement(run)
    except ValueError as error:
        assert "\n" not in str(error)
        return str(error).removeprefix(str(folder))
    return ""


def test_a_table_refuses_what_a_report_does(tmp_path):
    for seed in range(2):
        mask = np.arange(100) < 20 + seed
        planted(tmp_path / str(seed), "lora", seed, LABELS, mask)
    assert "| 79.5 ± " in config_tables.render_table("glue", tmp_path, "markdown")
    planted(tmp_path / "other", "lora", 2, LABELS, np.arange(100) < 60)
    shutil.copy(tmp_path / "other" / predictions.NAME, tmp_path / "1")
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"1: its predictions give accuracy 40, but its record says 79$"
    ):
        config_tables.render_table("glue", tmp_path, "markdown")
    (tmp_path / "1" / predictions.NAME).unlink()  # then nothing is known of it
    assert "| 79.5 ± " in config_tables.render_table("glue", tmp_path, "markdown")


def test_own_files_have_no_questions_whatever_their_name(tmp_path):
    """COPA's examples come in pairs, of which one is right."""
    changes = {"data.name": "super_glue/copa", "data.source": "files"}
    write(tmp_path, "glue", "task=sst2", {"accuracy": 0.8}, changes=changes)
    predictions.write(tmp_path, {"validation": Predictions(right(80), LABELS)})
    assert checked(tmp_path) == ""


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"accuracy": 0.8}, ""),
        ({"accuracy": 0.81}, ""),  # an example at the edge, which another machine rounds over it
        ({"accuracy": 0.82}, ": its predictions give accuracy 80, but its record says 82"),
        ({"accuracy": 0.78}, ": its predictions give accuracy 80, but its record says 78"),
        ({"accuracy": 0.86}, ": its predictions give accuracy 80, but its record says 86"),
        ({"accuracy": 0.8, "f1": 0.8}, ""),
        ({"accuracy": 0.8, "f1": 0.9}, ": its predictions give f1 80, but its record says 90"),
        ({"accuracy": 0.8, "eval_loss": 0.5133}, ""),
        ({"accuracy": 0.8, "eval_loss": 0.4}, ": its predictions give eval_loss 0.5133, but its r"),
        ({"accuracy": 0.8, "bleu": 3.0}, ""),  # of texts, which are not among the predictions
        ({"accuracy": 0.8, "accuracy_mismatched": 0.9}, ": its predictions give accuracy_mism"),
        ({"accuracy": 0.8, "accuracy_unlabelled": 0.9}, ""),
    ],
)
def test_every_metric_that_predictions_give_is_compared(tmp_path, scores, said):
    write(tmp_path, "glue", "task=sst2", scores)
    parts = {"validation": Predictions(right(80), LABELS)}
    parts["mismatched"] = Predictions(right(30), LABELS)
    parts["unlabelled"] = Predictions(RIGHT, None)
    predictions.write(tmp_path, parts)
    assert checked(tmp_path).startswith(said) and bool(said) == bool(checked(tmp_path))


@pytest.mark.parametrize("select", ["last", "best"])
def test_it_is_the_saved_adapter_whose_scores_are_compared(tmp_path, select):
    scores = {"last": {"accuracy": 0.5}, "best": {"accuracy": 0.9}}
    fields: dict[str, Any] = {f"metrics_{name}": each for name, each in scores.items()}
    for n in (50, 90):
        write(
            tmp_path / str(n),
            "glue",
            "task=sst2",
            {},
            changes={"train.select": select},
            outputs=right(n),
            labels=LABELS,
            **fields,
        )
    said = {n: checked(tmp_path / str(n)) for n in (50, 90)}
    assert [n for n in said if not said[n]] == [round(100 * scores[select]["accuracy"])]


BEST, LAST = (0.9, 0.8, 0.64, 0.95), (0.5, 0.7, 0.62, 0.4)
"""Of four seeds; that of the last one diverged."""


@pytest.mark.parametrize("choose", ["best", "last"])
def test_the_chosen_evaluation_is_taken_everywhere(tmp_path, choose):
    records = [
        write(
            tmp_path / str(seed),
            "glue",
            f"task=sst2,variant=lora,seed={seed}",
            {},
            changes={"train.select": choose},
            metrics_best={"accuracy": best},
            metrics_last={"accuracy": last},
            status="diverged" if seed == 3 else "completed",
            parameters=1,
        )
        for seed, (best, last) in enumerate(zip(BEST, LAST, strict=True))
    ]
    runs = recorded_runs.find(tmp_path)
    wanted = [100 * score for score in (BEST if choose == "best" else LAST)][:3]
    mean = pytest.approx(sum(wanted) / 3)
    own: dict[str, Any] = {"choose": choose, "report": "mean"}

    (block,) = cells.blocks({**config_tables.tables()["glue"], **own}, runs, ())
    places = [n for n, column in enumerate(block.columns) if column.task == "sst2"]
    assert [block.rows[0].cells[n].ours.centre for n in places] == [mean]
    (panel,) = panels(runs)
    panel = dataclasses.replace(panel, table={**panel.table, **own})
    assert panel.score([run for run in runs if run.completed]).centre == mean

    (contest,) = contests(runs, {})
    (method,) = contest.methods
    scores = {seed: score for (seed, _), score in method.scores().items()}
    assert scores == pytest.approx({**dict(enumerate(wanted)), 3: 100 * LAST[3]})

    folder: Any = SimpleNamespace(run=lambda name: tmp_path / name)
    loop: Any = SimpleNamespace(metric="accuracy")
    trials: Any = [
        SimpleNamespace(name=str(n), digest=r.config_digest) for n, r in enumerate(records)
    ]
    found = [score(folder, each, loop) for each in trials]
    assert found == [*(pytest.approx(score / 100) for score in wanted), None]
