"""The stored predictions of a contest's runs, and what each example adds to their scores."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.analysis import bootstrap, score_check
from experiments.analysis.choose_methods import Contest
from experiments.analysis.draws import Number
from experiments.analysis.recorded_runs import Run, scale

Values = Mapping[str, Mapping[Number, np.ndarray]]
"""What each question adds to a run's score, (questions,), by method and then by seed and draw."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """A completed run, with the outputs of its adapter and the labels of the scored examples."""

    run: Run
    outputs: np.ndarray
    labels: np.ndarray


def stored(contest: Contest) -> dict[str, dict[Number, Stored]]:
    """The completed runs that have predictions, by method and then by seed and draw.

    Raises:
      ValueError: the predictions of two runs are of different examples, or predictions do not give
        the score in their record.
    """
    found: dict[str, dict[Number, Stored]] = {method.key: {} for method in contest.methods}
    first: Stored | None = None
    for method in contest.methods:
        for run in (each for each in method.runs if each.completed):
            parts = run.predictions()
            part = parts.get("validation")
            if part is None or part.labels is None:
                continue
            own = Stored(run, np.asarray(part.outputs, np.float64), part.labels)
            first = first or own
            if not np.array_equal(first.labels, own.labels):
                raise ValueError(
                    f"{first.run.folder} and {run.folder} were scored on different examples: their "
                    "labels differ"
                )
            score_check.require_agreement(run, parts)
            found[method.key][run.number] = own
    return found


def values(contests: Sequence[Contest]) -> dict[str, Values]:
    """What each question adds to the scores of the runs that have predictions, by task.

    The values are in the unit of scores (`bootstrap.pseudovalues`). Errors are those of `stored`.
    """
    return {
        contest.task: {
            key: {number: _values(contest.metric, each) for number, each in own.items()}
            for key, own in stored(contest).items()
        }
        for contest in contests
    }


def _values(metric: str, own: Stored) -> np.ndarray:
    choices = score_check.choices(own.run)
    found = bootstrap.pseudovalues(metric, own.outputs, own.labels, choices=choices)
    return scale(metric) * found
