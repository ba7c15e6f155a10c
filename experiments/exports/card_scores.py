"""The scores in a run's record, with intervals from the predictions that the run has saved."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from configs.settings import TextConfig
from experiments.analysis.bootstrap import replicates
from experiments.analysis.recorded_runs import Run, saved_metrics
from experiments.analysis.scored_examples import choices_of, require_agreement
from experiments.analysis.significance import LEVEL, constant
from experiments.runs import predictions
from experiments.runs.finished_run import FinishedRun
from experiments.setup.validate import FROM_OPTIONS
from lora_jax.data.metrics import label_metrics
from lora_jax.data.metrics.text_metrics import TEXT_METRICS

ONE_PART = {*label_metrics.CLASSIFICATION, *label_metrics.REGRESSION, *TEXT_METRICS, FROM_OPTIONS}
"""The metrics of a single part; others are means over several."""


@dataclasses.dataclass(frozen=True)
class Score:
    """One number of a record, of the adapter that the run has saved."""

    name: str
    """As the record has it: `accuracy_mismatched`."""
    metric: str
    """Without the part: `accuracy`."""
    part: str | None
    """`validation`, or the name of an extra part; None if it is a mean over several parts."""
    value: float
    low: float | None = None
    high: float | None = None
    """The ends of the 95% interval over examples; None if there is none."""
    examples: int | None = None
    """How many examples, or questions, were scored; None if that is not known."""


def scores(run: FinishedRun) -> list[Score]:
    """All scores of the adapter that a run has saved, in the order of its record.

    A score has an interval if the run has saved the predictions of its part: the 95% percentile
    interval of the bootstrap over examples.

    Raises:
      ValueError: the predictions are damaged, or give other scores than the record.
    """
    parts = predictions.read(run.folder)
    of_record = Run(run.folder, run.record)
    require_agreement(of_record, parts)
    found = []
    for name, value in saved_metrics(run.record).items():
        if value is not None:
            metric, part = _split(name, [*run.experiment.texts.task.extra])
            one = Score(name, metric, part, value, examples=_generated(run, metric, part))
            found.append(_with_interval(one, parts, choices_of(of_record)))
    return found


def _split(name: str, extra: Sequence[str]) -> tuple[str, str | None]:
    """The metric and the part of a score: `<metric>_<part>`, or the metric alone."""
    for part in extra:
        metric = name.removesuffix(f"_{part}")
        if metric != name and metric in ONE_PART:
            return metric, part
    return name, "validation" if name in ONE_PART else None


def _generated(run: FinishedRun, metric: str, part: str | None) -> int | None:
    """For how many examples of a part texts were generated and scored; None for other metrics."""
    config, task = run.config, run.experiment.texts.task
    if not isinstance(config, TextConfig) or metric not in (*TEXT_METRICS, FROM_OPTIONS):
        return None
    whole = {"validation": task.validation, **task.extra}.get(part or "")
    if whole is None:
        return None
    return len(whole) if config.generate.scored < 0 else min(config.generate.scored, len(whole))


def _with_interval(
    score: Score, parts: Mapping[str, predictions.Predictions], choices: int
) -> Score:
    """The score with its interval, if the predictions give one."""
    outputs, labels = parts.get(score.part or "", (None, None))
    if outputs is None or labels is None:
        return score
    known = label_metrics.REGRESSION if outputs.shape[1] == 1 else label_metrics.CLASSIFICATION
    if score.metric not in known:
        return score
    (drawn,) = replicates(score.metric, [outputs], labels, choices=choices)
    count = len(labels) // choices
    if not np.isfinite(drawn).all() or constant(drawn, float(np.abs(drawn).max())):
        return dataclasses.replace(score, examples=count)
    low, high = np.quantile(drawn, [LEVEL / 2, 1 - LEVEL / 2])
    return dataclasses.replace(score, low=float(low), high=float(high), examples=count)
