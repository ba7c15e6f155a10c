"""Ways to make one update of several, for one matrix: weighted sums, TIES and DARE.

PEFT's `linear` averages A and B apart, which is not an average of the updates; here each is dW.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from lora_jax.adapters.updates import Factored, Update, dense
from lora_jax.messages import require_known
from lora_jax.methods.checks import require_count

KEPT = {"ties": 0.2, "dare": 0.1}
"""The share of entries that a method keeps by default, as in its paper."""
BY = ("sum", "linear", *KEPT, "interpolate", "negate")


@dataclasses.dataclass(frozen=True)
class Method:
    """How the updates dW_i of several adapters become one.

    Args:
      by: `sum`: sum w_i dW_i, exact. `linear`: the weighted mean, sum w_i dW_i / sum w_i (Wortsman
        et al. 2022, arXiv 2203.05482). `interpolate`: the same sum for two adapters, with weights
        1 - t and t. `negate`: - sum w_i dW_i (Ilharco et al. 2022, arXiv 2212.04089, section 3).
        `ties` and `dare`: the functions of these names.
      weights: w_i, one for each adapter.
      density: for `ties` and `dare`, the share of entries that is kept, in (0, 1]; None: 0.2 and
        0.1, as in the papers.
      seed: of the entries that `dare` drops.
    """

    by: str
    weights: tuple[float, ...]
    density: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_known(self.by, BY, f"there is no way '{self.by}' to combine adapters")
        if not self.weights or not all(map(math.isfinite, self.weights)):
            raise ValueError(f"weights {list(self.weights)}: expected finite numbers")
        total = sum(self.weights)
        if self.by == "linear" and abs(total) < 1e-12:
            raise ValueError("weights sum to 0, and 'linear' divides by their sum; 'sum' does not")
        if self.by == "interpolate" and (len(self.weights) != 2 or abs(total - 1) > 1e-6):
            raise ValueError(
                "'interpolate' takes two adapters, with weights that sum to 1; 'sum' takes any"
            )
        require_count("seed", self.seed, least=0)
        if self.density is not None:
            if self.by not in KEPT:
                raise ValueError(f"'{self.by}' keeps all entries: density is for {', '.join(KEPT)}")
            if not 0 < self.density <= 1:
                raise ValueError(f"density {self.density} is not in (0, 1]")

    @property
    def coefficients(self) -> tuple[float, ...]:
        """c_i such that the result is sum c_i dW_i, where no entries are dropped or disagree."""
        divisor = {"linear": sum(self.weights), "ties": len(self.weights), "negate": -1}
        return tuple(weight / divisor.get(self.by, 1) for weight in self.weights)

    @property
    def kept(self) -> float | None:
        """The share of entries that is kept; None if all are."""
        return self.density or KEPT.get(self.by)

    def __call__(self, updates: Sequence[Update | None], place: Sequence[int] = ()) -> Update:
        """The update of one matrix; None stands for an adapter that leaves it as it is.

        Args:
          updates: one of each adapter, at least one of which is not None.
          place: integers that tell this matrix from others, for what is drawn.
        """
        density = self.kept or 1.0
        if self.by == "ties":
            return ties(updates, self.weights, density)
        if self.by == "dare":
            updates = [
                None
                if each is None
                else dare(dense(each), density, np.random.default_rng([self.seed, *place, number]))
                for number, each in enumerate(updates)
            ]
        return weighted_sum(updates, self.coefficients)


def weighted_sum(updates: Sequence[Update | None], weights: Sequence[float]) -> Update:
    """sum w_i dW_i; of factored updates it is exact, their ranks one after the other."""
    present = [(w, u) for w, u in zip(weights, updates, strict=True) if u is not None]
    factored = [(w, u) for w, u in present if isinstance(u, Factored)]
    if len(factored) == len(present):
        a = np.concatenate([u.a for _, u in factored])
        return Factored(a, np.concatenate([w * u.b for w, u in factored]))
    total = np.zeros_like(dense(present[0][1]))
    for weight, update in present:
        total += weight * dense(update)
    return total


def ties(updates: Sequence[Update | None], weights: Sequence[float], density: float) -> np.ndarray:
    """TIES (Yadav et al. 2023, arXiv 2306.01708, algorithm 1): trim, elect signs, disjoint mean.

    Each update keeps the share `density` of its entries that are largest in magnitude. Each entry
    gets the sign of the sum of what is left, and the mean of those values that have this sign. The
    paper trims over all weights at once; here, as in PEFT, each matrix is trimmed for itself. The
    paper's lambda is the weight, where all adapters have the same; otherwise updates are multiplied
    by their weights before signs are elected.
    """
    trimmed = [
        weight * trim(dense(each), density)
        for weight, each in zip(weights, updates, strict=True)
        if each is not None
    ]
    sign = np.sign(sum(trimmed))
    total, count = np.zeros_like(trimmed[0]), np.zeros_like(trimmed[0])
    for each in trimmed:
        agrees = (np.sign(each) == sign) & (sign != 0)
        total += np.where(agrees, each, 0)
        count += agrees
    return total / np.maximum(count, 1)


def trim(array: np.ndarray, density: float) -> np.ndarray:
    """The array with only the share `density` of its entries that are largest in magnitude."""
    kept = max(1, int(density * array.size))
    largest = np.argpartition(np.abs(array), array.size - kept, axis=None)[-kept:]
    found = np.zeros_like(array)
    found.flat[largest] = array.flat[largest]
    return found


def dare(array: np.ndarray, density: float, rng: np.random.Generator) -> np.ndarray:
    """DARE (Yu et al. 2023, arXiv 2311.03099, section 3.2): drop entries, rescale the others.

    Each entry stays with probability `density`, 1 - p in the paper, and is divided by it, which
    keeps the expected value.
    """
    return np.where(rng.random(array.shape) < density, array / density, 0)
