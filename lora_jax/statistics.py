"""What a method may ask to see of a weight before it starts: its gradient, or its inputs.

Both are summed over some batches (`lora_jax.transform.gather`), and given as their leading
directions: no array of a weight's own size is made.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
from jax import Array


@dataclasses.dataclass(frozen=True)
class Need:
    """What a method has to see of each of its weights."""

    of: Literal["gradient", "inputs"]
    directions: int
    """How many leading directions."""

    def count(self, shape: tuple[int, int]) -> int:
        """How many directions are given of an (in, out) matrix: never more than its rank."""
        return min(self.directions, *shape)

    def shapes(self, shape: tuple[int, int], dtype: Any) -> "Seen":
        """The shapes of what is seen of an (in, out) matrix."""
        count, (inputs, outputs) = self.count(shape), shape

        def array(*sizes: int) -> Any:
            return jax.ShapeDtypeStruct(sizes, dtype)

        if self.of == "gradient":
            return SeenGradient(array(count, inputs), array(count), array(count, outputs))
        vectors = array(inputs), array(inputs)
        return SeenInputs(array(count, inputs), array(count), array(), *vectors)


class SeenGradient(NamedTuple):
    """The leading singular triplets of dL/dW, (in, out): the sum of value * outer(left, right)."""

    left: Array
    """(directions, in), orthonormal rows."""
    values: Array
    """(directions,), the greatest first."""
    right: Array
    """(directions, out), orthonormal rows."""


class SeenInputs(NamedTuple):
    """The principal components of a weight's inputs, over all its uses and tokens that count."""

    directions: Array
    """(directions, in), orthonormal rows: eigenvectors of the inputs' covariance."""
    variances: Array
    """(directions,), the greatest first."""
    variance: Array
    """The variance in all directions, a number: the trace of the covariance."""
    mean: Array
    """(in,)."""
    magnitude: Array
    """(in,), the mean of absolute values."""


Seen = SeenGradient | SeenInputs
