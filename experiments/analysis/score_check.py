"""Whether the scores of a record are those of the predictions that its run has stored."""

from collections.abc import Mapping

import numpy as np

from experiments.analysis.collect_runs import Run, scale
from experiments.runs import predictions
from experiments.runs.predictions import Predictions
from lora_jax.data import SPECS
from lora_jax.metrics import label_metrics


def check(run: Run, parts: Mapping[str, Predictions] | None = None) -> None:
    """Compare every metric of the adapter that a run saved with what its predictions give.

    What they cannot give, as scores of written texts, is not compared, nor is a run without any.

    Args:
      parts: the predictions, where they have been read.

    Raises:
      ValueError: a metric that they contradict, or a file of predictions that is damaged.
    """
    if not run.completed:
        return
    record, kept = run.record, predictions.read(run.folder) if parts is None else parts
    best = record.config["train"]["select"] == "best"
    recorded = record.metrics_best if best else record.metrics_last
    for part, (outputs, labels) in kept.items():
        if labels is None:
            continue
        end = "" if part == "validation" else f"_{part}"
        known = label_metrics.REGRESSION if outputs.shape[1] == 1 else label_metrics.CLASSIFICATION
        said = {name: value for name in known if (value := recorded.get(name + end)) is not None}
        given = label_metrics.score([*said], np.asarray(outputs, np.float64), labels, choices(run))
        for name, value in said.items():
            n = _counted(name, labels, choices(run))
            _compare(run, name + end, given[name], value, n)


def choices(run: Run) -> int:
    """How many examples in a row are one question of a run's task."""
    spec = SPECS.get(run.record.config["data"]["name"])
    return spec.choices if spec else 1


def _counted(name: str, labels: np.ndarray, choices: int) -> int:
    """How many answers a score is of: F1 and Matthews turn with each one of the rarer class."""
    if name in ("f1", "matthews"):
        return int(np.unique(labels, return_counts=True)[1].min())
    return len(labels) // choices


def _compare(run: Run, name: str, given: float, recorded: float, n: int) -> None:
    # Predictions are of the very outputs that were scored: the records of this repository agree to
    # the last digit. A rounding on another machine may turn one answer, not two.
    most = max(1e-3, 1.5 / n)
    if abs(given - recorded) > most * max(1.0, abs(given)):
        unit = scale(name)
        raise ValueError(
            f"{run.folder}: its predictions give {name} {unit * given:.4g}, its record "
            f"{unit * recorded:.4g}"
        )
