"""The mean difference over seeds and examples, which are crossed: all seeds have the same examples.

The difference of two methods with seed s on example e is taken to be d_se = mean + a_s + b_e +
c_se: seeds differ, examples differ, and some seeds do better on some examples. The variance of the
mean of S seeds and E examples is var(a) / S + var(b) / E + var(c) / SE. With the mean squares of
the two-way analysis of variance, (MS_seeds + MS_examples - MS_rest) / SE is an unbiased estimate of
it (Cornfield and Tukey, 1956; Searle, Casella and McCulloch, 1992). The variance of the S means of
seeds, / S, is MS_seeds / SE: it holds var(c), and so does that of the E means of examples. Their
sum would count var(c) twice, as resampling both seeds and examples does (Owen, 2007). As the true
variance is at least each of the two, so is the estimate. Miller (2024, "Adding error bars to
evals") counts examples as a sample in the same way.

For accuracy, the values of examples are 0 and 1. For other metrics they are those of the jackknife
(`bootstrap.pseudovalues`): for many examples, a metric is the mean of these.

Degrees of freedom are those of Satterthwaite (1946) over the three mean squares if there are
`TRUSTED` seeds or more. With fewer seeds they are seeds - 1, as in `significance`: few seeds may
be close by chance, so that the estimate is small and its degrees of freedom many, both at once.
"""

import dataclasses
import math

import numpy as np

from experiments.analysis.significance import TRUSTED, MeanDifference, over_seeds


@dataclasses.dataclass(frozen=True)
class Squares:
    """The mean squares of seeds, examples and their interaction, each as a variance of the mean.

    They are divided by seeds * examples.
    """

    seeds: float
    examples: float
    rest: float
    shape: tuple[float, float]
    """The numbers of seeds and examples, at least two each."""

    @property
    def variance(self) -> float:
        """That of the mean over new seeds and new examples."""
        return max(self.seeds + self.examples - self.rest, self.seeds, self.examples)

    @property
    def df(self) -> float:
        """The degrees of freedom of the variance."""
        seeds, examples = (each - 1.0 for each in self.shape)
        if self.shape[0] < TRUSTED or self.variance == 0:
            return seeds
        parts = self.seeds**2 / seeds + self.examples**2 / examples
        return self.variance**2 / (parts + self.rest**2 / (seeds * examples))


def squares(scores: np.ndarray, differences: np.ndarray) -> Squares:
    """The mean squares of the differences of two methods.

    Args:
      scores: by seed, (seeds,); for a metric that is no mean over examples, these are not quite
        the means of the next ones.
      differences: of what each example adds, (seeds, examples).
    """
    seeds, examples = differences.shape
    by_seed, by_example = differences.mean(1), differences.mean(0)
    rest = differences - by_seed[:, None] - by_example + differences.mean()
    scale = (seeds - 1) * (examples - 1) * seeds * examples
    return Squares(
        float(scores.var(ddof=1)) / seeds,
        float(by_example.var(ddof=1)) / examples,
        float((rest**2).sum()) / scale,
        (seeds, examples),
    )


def over_both(
    first: np.ndarray, second: np.ndarray, ours: np.ndarray, theirs: np.ndarray
) -> MeanDifference:
    """The first method's scores minus the second's, with its error over seeds and examples.

    Args:
      first, second: as for `over_seeds`; one seed gives no error.
      ours, theirs: what each example adds to these scores, (seeds, examples).

    Raises:
      ValueError: no seeds, or arrays of different shapes.
    """
    found = over_seeds(first, second)
    if ours.shape != theirs.shape or len(ours) != len(first):
        raise ValueError(f"paired scores need the same examples: {ours.shape} and {theirs.shape}")
    if found.error is None:
        return found
    own = squares(first - second, ours - theirs)
    if math.sqrt(own.variance) <= 1e-9 * max(np.abs(ours).max(), np.abs(theirs).max()):
        return found  # all differences are 0, but for roundings
    return dataclasses.replace(found, error=math.sqrt(own.variance), df=own.df)
