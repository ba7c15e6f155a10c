"""Stored predictions: whether they give the recorded scores, and what each example adds to them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from experiments.analysis import bootstrap
from experiments.analysis.choose_methods import Contest
from experiments.analysis.collect_runs import RunNumber
from experiments.analysis.recorded_runs import Run, saved_metrics, scale
from experiments.runs import predictions
from lora_jax.data import SPECS
from lora_jax.data.metrics import label_metrics


def require_agreement(run: Run, parts: Mapping[str, predictions.Predictions] | None = None) -> None:
    """Compare every metric of a run's saved adapter with the value from its predictions.

    Metrics that predictions cannot give, such as scores of generated texts, are not compared. A run
    that is not completed or has no predictions is not checked.

    Args:
      parts: the predictions, if they have been read already.

    Raises:
      ValueError: a metric disagrees with the predictions, or their file is damaged.
    """
    if not run.completed:
        return
    kept = run.predictions() if parts is None else parts
    require_scores(kept, saved_metrics(run.record), f"{run.folder}: its", choices_of(run))


def require_scores(
    parts: Mapping[str, predictions.Predictions],
    recorded: Mapping[str, float | None],
    whose: str,
    choices: int = 1,
) -> None:
    """Compare every metric that predictions can give with the recorded value.

    Args:
      whose: the beginning of an error, before "predictions give ...".
      choices: as for `label_metrics.score`.

    Raises:
      ValueError: a metric disagrees.
    """
    for part, (outputs, labels) in parts.items():
        if labels is None:
            continue
        end = "" if part == "validation" else f"_{part}"
        known = label_metrics.REGRESSION if outputs.shape[1] == 1 else label_metrics.CLASSIFICATION
        said = {name: value for name in known if (value := recorded.get(name + end)) is not None}
        given = label_metrics.score([*said], np.asarray(outputs, np.float64), labels, choices)
        for name, value in said.items():
            # Predictions are the very outputs that were scored: the records of this repository
            # agree to the last digit. Rounding on another machine may change one answer, but not
            # two, and F1 and Matthews depend on no more answers than the rarest class has.
            rare = name in ("f1", "matthews")
            n = np.unique(labels, return_counts=True)[1].min() if rare else len(labels) // choices
            most = max(1e-3, 1.5 / n) * max(1.0, abs(given[name]))
            if abs(given[name] - value) > most:
                unit = scale(name + end)
                raise ValueError(
                    f"{whose} predictions give {name + end} {unit * given[name]:.4g}, but its "
                    f"record says {unit * value:.4g}"
                )


def choices_of(run: Run) -> int:
    """How many successive examples make one question in a run's task."""
    data = run.config.data
    spec = None if data.source == "files" else SPECS.get(data.name)
    return spec.choices if spec else 1


Values = Mapping[str, Mapping[RunNumber, np.ndarray]]
"""What each question adds to a run's score, (questions,), by method and then by seed and draw."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """A completed run, with the outputs of its adapter and the labels of the scored examples."""

    run: Run
    outputs: np.ndarray
    labels: np.ndarray


def read(runs: Iterable[Run]) -> list[Stored]:
    """Those of some runs that have predictions with labels.

    Raises:
      ValueError: the predictions of two runs are of different examples, or predictions do not give
        the score in their record.
    """
    found: list[Stored] = []
    for run in runs:
        parts = run.predictions()
        part = parts.get("validation")
        if part is None or part.labels is None:
            continue
        found.append(Stored(run, np.asarray(part.outputs, np.float64), part.labels))
        if not np.array_equal(found[0].labels, part.labels):
            raise ValueError(
                f"{found[0].run.folder} and {run.folder} were scored on different examples: their "
                "labels differ"
            )
        require_agreement(run, parts)
    return found


def stored(contest: Contest) -> dict[str, dict[RunNumber, Stored]]:
    """The completed runs that have predictions, by method and then by seed and draw.

    Errors are those of `read`.
    """
    every = [run for method in contest.methods for run in method.runs if run.completed]
    known = {id(each.run): each for each in read(every)}
    return {
        method.key: {run.number: known[id(run)] for run in method.runs if id(run) in known}
        for method in contest.methods
    }


def values(contests: Sequence[Contest]) -> dict[str, Values]:
    """What each question adds to the scores of the runs that have predictions, by task.

    The values are in the unit of scores (`bootstrap.pseudovalues`). Errors are those of `stored`.
    """
    return {
        contest.task: {
            key: {number: values_of(contest.metric, each) for number, each in own.items()}
            for key, own in stored(contest).items()
        }
        for contest in contests
    }


def values_of(metric: str, own: Stored) -> np.ndarray:
    """What each question adds to a run's score, in the unit of scores."""
    choices = choices_of(own.run)
    found = bootstrap.pseudovalues(metric, own.outputs, own.labels, choices=choices)
    return scale(metric) * found
