"""What methods gain over the reference of a study, on each task and over all of them together."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

Verdict = Literal["better", "worse", "equivalent", "undecided"]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean difference in points of the metric, with its two-sided 95% interval, over `n` seeds.

    `p` is that of no difference; `low`, `high` and `p` are None where one seed gives none.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int


@dataclasses.dataclass(frozen=True)
class Gain:
    """A method's scores minus those of the reference, paired by seed."""

    key: str
    label: str
    by_task: Mapping[str, Estimate]
    """Of each task, by its name."""
    over_tasks: Estimate
    """The mean over these tasks, all of the same weight."""
    new_task: Estimate | None
    """The mean of tasks of which these are a sample, by a random-effects model."""
    adjusted: float | None
    """Holm's p value of `over_tasks` in the family of all methods."""
    equivalent: float | None
    """The p value of two one-sided tests against the margin (TOST), of `over_tasks`."""
    upper: float | None
    """The one-sided 95% upper bound of `over_tasks`."""
    detectable: float | None
    """The smallest difference that the test of `over_tasks` would find with a power of 80%."""
    verdict: Verdict
