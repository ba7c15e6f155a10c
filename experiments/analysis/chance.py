"""The answer that needs no model: always the most frequent one."""

import numpy as np

from configs.settings import TextConfig
from experiments.analysis import score_check
from experiments.analysis.choose_methods import Contest
from experiments.analysis.recorded_runs import scale
from experiments.runs.predictions import Predictions


def one_answer(contest: Contest) -> Predictions | None:
    """The outputs of always giving the most frequent answer, (examples, classes).

    None if answers are no classes, if an example is a choice among several texts, or if no run kept
    its predictions, which hold the labels.
    """
    runs = [run for method in contest.methods for run in method.runs if run.completed]
    if any(isinstance(run.config, TextConfig) for run in runs):
        return None
    for run in runs:
        part = run.predictions().get("validation")
        if part is not None and part.labels is not None:
            classes = part.outputs.shape[1]
            if classes < 2 or score_check.choices(run) > 1:
                return None
            counts = np.bincount(part.labels.astype(int), minlength=classes)
            row = np.eye(classes)[counts.argmax()]
            return Predictions(np.tile(row, (len(part.labels), 1)), part.labels)
    return None


def most_frequent(contest: Contest) -> float | None:
    """The accuracy of always giving the most frequent answer, in the unit of the scores.

    None if the metric is another one, or as for `one_answer`.
    """
    if contest.metric != "accuracy" or (constant := one_answer(contest)) is None:
        return None
    assert constant.labels is not None
    right = constant.outputs.argmax(1) == constant.labels
    return scale(contest.metric) * float(right.mean())
