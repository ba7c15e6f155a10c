"""Metrics of `label_metrics` on many bootstrap resamples at once, or without each example."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from lora_jax.data.metrics import label_metrics
from lora_jax.data.metrics.label_metrics import Sample, ratio

RESAMPLES = 10_000
CHUNK = 4_000_000
"""The most numbers in an array of `weights`, if it has more than one row."""

ROUNDING = 1e-12
"""A bound on the spread that rounding gives to equal values."""


def replicates(
    metric: str,
    outputs: Sequence[np.ndarray],
    labels: np.ndarray,
    *,
    choices: int = 1,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """A metric of several runs on the same resamples of the examples, (runs, resamples).

    Examples are drawn with replacement. As all runs have the same resamples, differences between
    runs are those of a paired bootstrap.

    Args:
      metric, outputs, labels, choices: as for `label_metrics.score`, except that `outputs` has an
        array for each run. Each `choices` successive rows are a question; whole questions are
        drawn.

    Raises:
      ValueError: an unknown metric, or one that does not fit the outputs.
    """
    runs = [np.asarray(each, np.float64) for each in outputs]
    found = []
    for drawn in weights(len(labels) // choices, resamples, seed):
        sample = Resamples(drawn, choices)
        found.append([label_metrics.measure(metric, each, labels, sample) for each in runs])
    return np.concatenate(found, axis=1)


def pseudovalues(
    metric: str, outputs: np.ndarray, labels: np.ndarray, *, choices: int = 1
) -> np.ndarray:
    """What each question adds to a run's metric, by the jackknife, (questions,).

    It is n times the metric less n - 1 times that without the question (Tukey, 1958). For a mean
    over questions, such as accuracy, these are the values whose mean it is. For other metrics, the
    variance of their mean is that of the metric over samples of questions, where these are many.

    Args: as for `replicates`, with the outputs of one run.
    """
    n, values = len(labels) // choices, np.asarray(outputs, np.float64)
    whole = label_metrics.measure(metric, values, labels, Sample(choices))
    return n * whole - (n - 1) * label_metrics.measure(metric, values, labels, Without(n, choices))


def weights(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n examples is in each resample: arrays (some, n), `resamples` in all."""
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // n)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = rng.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)


class _Sums(Sample):
    """What follows from the sums of a sample whose examples weigh as much as the `n` together."""

    def counts(self, groups: np.ndarray, size: int) -> np.ndarray:
        return self.total(np.eye(size)[groups])

    def pearson(self, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
        x, y = _standard(values), _standard(targets)
        means = self.total(np.stack([x, y, x * x, y * y, x * y], axis=1)) / len(x)
        x, y, xx, yy, xy = means.T
        spread = np.sqrt(np.maximum((xx - x * x) * (yy - y * y), 0.0))
        return ratio(xy - x * y, spread, ROUNDING)


@dataclasses.dataclass(frozen=True)
class Without(_Sums):
    """The samples without each one of n questions, the others with a weight of n / (n - 1)."""

    n: int
    choices: int = 1

    def total(self, values: np.ndarray) -> np.ndarray:
        questions = values.reshape(self.n, -1, *values.shape[1:]).sum(1, dtype=np.float64)
        return (questions.sum(0) - questions) * (self.n / (self.n - 1))

    def spearman(self, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
        found = []
        for gone in np.array_split(np.arange(self.n), math.ceil(self.n**2 / CHUNK)):
            drawn = np.full((len(gone), self.n), self.n / (self.n - 1))
            drawn[np.arange(len(gone)), gone] = 0.0
            found.append(Resamples(drawn, self.choices).spearman(values, targets))
        return np.concatenate(found)


@dataclasses.dataclass(frozen=True)
class Resamples(_Sums):
    """Many bootstrap resamples as one `lora_jax.data.metrics.label_metrics.Sample`.

    `drawn` says how often each question is in each resample, (resamples, questions). Correlations
    have formulas of their own here, as SciPy's would need a call for each resample.
    """

    drawn: np.ndarray
    choices: int = 1

    def total(self, values: np.ndarray) -> np.ndarray:
        questions = values.reshape(self.drawn.shape[1], -1, *values.shape[1:])
        return self.drawn @ questions.sum(1, dtype=np.float64)

    def spearman(self, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
        n = len(values)
        centre = (1 + 1 / n) / 2  # the mean of the ranks, divided by n
        x, y = (self._ranks(side) / n - centre for side in (values, targets))
        squares = (self.drawn * x**2).sum(1) * (self.drawn * y**2).sum(1)
        return ratio((self.drawn * x * y).sum(1), np.sqrt(squares), ROUNDING)

    def _ranks(self, values: np.ndarray) -> np.ndarray:
        """The rank of each example in each resample, (resamples, n); ties have their mean rank."""
        _, group = np.unique(values, return_inverse=True)
        members = np.argsort(group, kind="stable")
        starts = np.flatnonzero(np.diff(group[members], prepend=-1))
        counts = np.add.reduceat(self.drawn[:, members], starts, axis=1)
        ranks = counts.cumsum(1) - (counts - 1) / 2
        return ranks[:, group]


def _standard(values: np.ndarray) -> np.ndarray:
    """Shift values to mean 0 and scale them to at most 1, so that sums of squares are accurate."""
    values = values - values.mean()
    return values / (np.abs(values).max() or 1.0)
