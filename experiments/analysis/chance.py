"""The accuracy that needs no model: that of the most frequent answer."""

import numpy as np

from configs.settings import TextConfig
from experiments.analysis import score_check
from experiments.analysis.choose_methods import Contest
from experiments.analysis.recorded_runs import scale


def most_frequent(contest: Contest) -> float | None:
    """The score of who always gives the most frequent answer, in the unit of the scores.

    None if the metric is not the accuracy, if an example is a choice among several texts, or if no
    run kept its predictions, which hold the labels.
    """
    runs = [run for method in contest.methods for run in method.runs if run.completed]
    if contest.metric != "accuracy" or any(isinstance(run.config, TextConfig) for run in runs):
        return None
    for run in runs:
        part = run.predictions().get("validation")
        if part is not None and part.labels is not None:
            if part.outputs.shape[1] < 2 or score_check.choices(run) > 1:
                return None
            counts = np.unique(part.labels, return_counts=True)[1]
            return scale(contest.metric) * float(counts.max()) / len(part.labels)
    return None
