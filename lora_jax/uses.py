"""How a function uses one parameter: `discover` finds this, and a variant is given it."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from lora_jax.table import Table


@dataclasses.dataclass(frozen=True)
class Use:
    """One way in which a parameter is used."""

    kind: str
    """`product`, `transposed product`, `lookup`, `convolution`, or the name of an operation."""
    merges: str | None = None
    """Why this use needs the merged weight (slower, never wrong); None if it uses the factors."""

    def __str__(self) -> str:
        return self.kind


@dataclasses.dataclass(frozen=True)
class WeightUse:
    """How a function uses one parameter, and which of its axes form a matrix.

    `stack`, `inputs` and `outputs` are axes of the array as the model stores it. They are empty for
    a parameter that is never used as a matrix.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    """The array's dtype: a NumPy dtype, or that of a PRNG key."""
    stack: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    uses: tuple[Use, ...] = ()
    activations: bool = False
    """Whether it is multiplied with something other than a parameter."""
    constant_inputs: bool = False
    """Whether it is multiplied with what no input of the function changes: relative positions."""
    output_embedding: bool = False
    """Whether it is a tied lookup table, or an output head that maps features to a table's rows."""
    final: bool = False
    """Whether it is multiplied by last: no other product follows."""

    @property
    def is_real(self) -> bool:
        """Whether it holds real numbers: not integers, truth values, complex numbers or keys."""
        return jnp.issubdtype(self.dtype, jnp.floating)

    @property
    def is_matrix(self) -> bool:
        return bool(self.inputs or self.outputs)

    @property
    def is_tied(self) -> bool:
        """Whether it is a table that is also the head."""
        return self.output_embedding and any(use.kind == "lookup" for use in self.uses)

    @property
    def is_linear(self) -> bool:
        """Whether `targets="all-linear"` selects it."""
        kinds = {use.kind for use in self.uses}
        product = bool(kinds & {"product", "transposed product"})
        matrix = self.is_real and bool(self.inputs and self.outputs)
        return product and matrix and self.activations and not self.output_embedding

    @property
    def is_convolution(self) -> bool:
        """Whether `targets="all-linear+conv"` selects it besides."""
        convolved = any(use.kind == "convolution" for use in self.uses)
        return convolved and self.is_real and bool(self.inputs and self.outputs)

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape (in, out) of the matrix, or of each one of a stack."""
        return self.size(self.inputs), self.size(self.outputs)

    @property
    def stack_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self.stack)

    def size(self, axes: tuple[int, ...]) -> int:
        return math.prod(self.shape[axis] for axis in axes)


class Uses(dict[str, WeightUse]):
    """`{path: WeightUse}`, in tree order; printing it gives a readable table."""

    def __str__(self) -> str:
        rows = []
        for path, use in self.items():
            kinds = list(dict.fromkeys(str(each) for each in use.uses)) or ["not used"]
            merged = dict.fromkeys(each.merges for each in use.uses if each.merges)
            rows.append(
                (
                    path,
                    "x".join(map(str, use.shape)) or "scalar",
                    "{} -> {}".format(*use.matrix) if use.is_matrix else "",
                    "x".join(map(str, use.stack_shape)),
                    ", ".join(kinds),
                    ", ".join(merged) if use.is_matrix and merged else "",
                )
            )
        heads = ("path", "shape", "in -> out", "stack", "used as", "merged at")
        return Table(heads, rows).to_text()

    __repr__ = __str__
