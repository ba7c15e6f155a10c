"""The mean of all tasks like those of a study, of which these are taken to be a sample.

The model is y_t = mean + b_t + e_t: the effect of a task differs from the mean by b_t, of variance
tau² between tasks, and its estimate from its effect by e_t, of the known standard error. With few
tasks the interval is wide, however many seeds there are.
"""

import math

import numpy as np
from scipy import optimize

from experiments.analysis.mean_difference import MeanDifference

FEWEST = 3
"""The fewest tasks from which a variance between tasks is estimated."""


def new_task(means: np.ndarray, errors: np.ndarray) -> MeanDifference | None:
    """The mean over tasks, with the interval of Hartung and Knapp (2001), Sidik and Jonkman (2002).

    tau² is that of Paule and Mandel (1982). With it, the weighted squares have a mean of 1, and the
    interval is mean ± t of (tasks - 1) degrees of freedom / sqrt(the sum of the weights). If tau²
    is 0, the squares have a mean below 1 by chance; the interval is not made narrower by it (Röver,
    Knapp and Friede, 2015).

    Args:
      means: the mean difference on each task, (tasks,).
      errors: their standard errors, (tasks,), above 0.

    Returns:
      The mean, of as many degrees of freedom as tasks less one; None with fewer than three tasks.

    Raises:
      ValueError: an error that is not above 0.
    """
    if not (errors > 0).all():
        raise ValueError(f"random effects need standard errors above 0, not {errors.min()}")
    if len(means) < FEWEST:
        return None
    weights = 1 / (errors**2 + between_tasks(means, errors))
    mean = float((weights * means).sum() / weights.sum())
    return MeanDifference(mean, 1 / math.sqrt(weights.sum()), len(means) - 1.0, len(means))


def between_tasks(means: np.ndarray, errors: np.ndarray) -> float:
    """The variance tau² between tasks, by Paule and Mandel (1982); 0 if errors explain it all.

    Args: as for `new_task`.
    """

    def too_far(variance: float) -> float:
        weights = 1 / (errors**2 + variance)
        mean = (weights * means).sum() / weights.sum()
        return float((weights * (means - mean) ** 2).sum()) - (len(means) - 1)

    if too_far(0.0) <= 0:
        return 0.0
    # With equal weights, the squares sum to the variance of the means: there is an end.
    high = float(means.var(ddof=1))
    while too_far(high) > 0:
        high *= 2
    return optimize.root_scalar(too_far, bracket=(0.0, high), xtol=1e-14, rtol=1e-12).root
