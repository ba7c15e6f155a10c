"""The mean of all tasks like those of a study, of which these are taken to be a sample.

The model is y_t = mean + b_t + e_t: the effect of a task differs from the mean by b_t, which varies
between tasks, and its estimate from its effect by e_t, which varies with seeds. The variance of the
tasks' estimates holds both. So Student's t-test of the estimates is a test of the mean. At levels
up to 8.3% it never claims too much, however different the noise of tasks is (Bakirov and Székely,
2005; Ibragimov and Müller, 2010). Tests that weight tasks by estimated errors can claim too much:
with 3 tasks of 10 seeds, whose sds are 0.2, 0.5 and 2, the 95% intervals of Hartung and Knapp
covered the mean in 90%. With few tasks the interval is wide, however many seeds there are.

The sd of b_t is estimated by moments with equal weights (Hedges, 1983; "Cochran ANOVA" of
DerSimonian and Kacker, 2007): the variance of the tasks' estimates, less the mean of their squared
errors. It is unbiased, before it is cut off at 0, though errors are themselves estimated from few
seeds. DerSimonian and Laird's (1986) is the same where all errors are equal. Else it weights tasks
by their errors, so a task whose error is small by chance has most of the weight.
"""

import math
import statistics
from collections.abc import Sequence

import numpy as np

from experiments.analysis.mean_difference import MeanDifference

FEWEST = 3
"""The fewest tasks from which a variance between tasks is estimated."""


def new_task(means: np.ndarray) -> MeanDifference | None:
    """The mean over tasks, with an error that holds the variance between tasks and that of seeds.

    Args:
      means: the mean difference on each task, (tasks,).

    Returns:
      The mean, of as many degrees of freedom as tasks less one; None with fewer than three tasks.
    """
    if (tasks := len(means)) < FEWEST:
        return None
    error = float(means.std(ddof=1)) / math.sqrt(tasks)
    return MeanDifference(float(means.mean()), error, tasks - 1.0, tasks)


def between_tasks(tasks: Sequence[MeanDifference]) -> float | None:
    """The sd of the true differences between tasks, in points; 0 if the noise of seeds explains it.

    Args:
      tasks: the mean difference on each task.

    Returns:
      None with fewer than three tasks, or where one task has no error.
    """
    errors = [task.error for task in tasks if task.error]
    if len(tasks) < FEWEST or len(errors) < len(tasks):
        return None
    seen = statistics.variance(task.mean for task in tasks)
    return math.sqrt(max(0.0, seen - statistics.fmean(each**2 for each in errors)))
