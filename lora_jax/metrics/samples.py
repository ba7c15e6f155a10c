"""The sample that a metric is computed on: every example once, or many resamples at once."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Protocol

import numpy as np
import scipy  # which loads `stats` where it is used: that takes half a second


class Sample(Protocol):
    """Sums and correlations over the examples of a sample.

    Values are arrays with a first axis of examples, (n, ...). A sample that stands for several
    resamples gives each result with a first axis of resamples, (resamples, ...).
    """

    @property
    def choices(self) -> int:
        """This many successive examples are one question (`Task.choices`)."""
        ...

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum of values of examples, (n, ...), or of questions, (n / choices, ...)."""
        ...

    def counts(self, groups: np.ndarray, size: int) -> np.ndarray:
        """How many examples are in each of `size` groups, of which (n,) are the numbers."""
        ...

    def pearson(self, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Pearson's correlation of finite values (n,) with targets (n,); 0 if undefined."""
        ...

    def spearman(self, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The correlation of ranks, with mean ranks for ties; as `pearson`."""
        ...


@dataclasses.dataclass(frozen=True)
class EachOnce:
    """The sample of a score: every example once. SciPy computes the correlations."""

    choices: int = 1

    def total(self, values: np.ndarray) -> np.ndarray:
        return values.sum(0)

    def counts(self, groups: np.ndarray, size: int) -> np.ndarray:
        return np.bincount(groups, minlength=size).astype(np.float64)

    def pearson(self, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return _correlation(scipy.stats.pearsonr, values, targets)

    def spearman(self, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return _correlation(scipy.stats.spearmanr, values, targets)


def _correlation(measure: Callable, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    if len(values) < 2 or values.min() == values.max() or targets.min() == targets.max():
        return np.zeros(())
    with warnings.catch_warnings(action="ignore"):  # about values that barely differ
        found = np.asarray(measure(values, targets).statistic)
    return np.where(np.isfinite(found), found, 0.0)


def ratio(above: np.ndarray, below: np.ndarray, least: float = 0.0) -> np.ndarray:
    """The quotient; 0 where `below` is at most `least`."""
    found = np.zeros(np.broadcast(above, below).shape)
    return np.divide(above, below, out=found, where=below > least)
