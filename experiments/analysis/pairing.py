"""What it brings to compare methods by the same seeds: the same examples, their order and the head.

The variance of a difference of two scores of one seed is the sum of their variances less twice
their covariance. Without pairs, it would be the sum. The ratio of the two says how many seeds give
the same standard error: n pairs are worth n / ratio seeds that are not paired.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Paired:
    """The variances of differences with pairs and without, in points²."""

    paired: float
    unpaired: float

    @property
    def ratio(self) -> float | None:
        """Below 1 if pairs help, above 1 if they harm; None if scores do not vary."""
        return self.paired / self.unpaired if self.unpaired > 0 else None


def bought(first: np.ndarray, second: np.ndarray) -> Paired:
    """What pairs bring in a comparison of two methods.

    Args:
      first, second: scores of the same seeds, (seeds,), at least two.

    Raises:
      ValueError: fewer than two seeds, or different numbers of seeds.
    """
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(f"pairs need two common seeds: got {len(first)} and {len(second)}")
    unpaired = float(first.var(ddof=1) + second.var(ddof=1))
    return Paired(float((first - second).var(ddof=1)), unpaired)


def together(parts: Sequence[Paired]) -> Paired:
    """What pairs bring on average over comparisons of about as many seeds.

    Raises:
      ValueError: no comparison.
    """
    if not parts:
        raise ValueError("what pairs bring needs one comparison at least")
    paired, unpaired = (
        float(np.mean([getattr(part, name) for part in parts])) for name in ("paired", "unpaired")
    )
    return Paired(paired, unpaired)
