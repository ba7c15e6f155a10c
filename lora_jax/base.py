"""A frozen weight matrix, as variants see it: stored densely here, and products with it."""

import contextlib
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from lora_jax.statistics import Seen


def wide(dtype: Any) -> Any:
    """The dtype itself, or float32 where it is narrower: that of a weight's factors."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Operand:
    """An input to multiply by a weight, and how to multiply it (see `Base.dots`)."""

    x: Array
    """(..., in)."""
    accumulate: Any = dataclasses.field(default=None, metadata={"static": True})
    """The dtype of the sums; None for the dtype of x."""
    precision: str | None = dataclasses.field(default=None, metadata={"static": True})
    """A value for `jax.default_matmul_precision`; None keeps the current precision."""

    def times(self, base: "Base") -> Array:
        way = self.precision and jax.default_matmul_precision(self.precision)
        with way or contextlib.nullcontext():
            return dataclasses.replace(base, accumulate=self.accumulate).dot(self.x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Base:
    """A frozen weight matrix, stored densely, and products with it.

    Quantised storage subclasses this and overrides `astype` and `dense`. All methods see one
    `(in, out)` matrix: stacked axes come first on every leaf, and callers map over them.
    """

    value: Array
    """The weight, with its in and out axes in the order in which the model stores them."""

    roles: str = dataclasses.field(metadata={"static": True})
    """One letter for each of those axes: `i` for in, `o` for out."""

    accumulate: Any = dataclasses.field(default=None, metadata={"static": True})
    """The dtype of products; None for the dtype of their operands."""

    seen: Seen | None = None
    """In `init`, what the variant asked to see of the weight (`Variant.needs`)."""

    original: "Base | None" = None
    """In `init`, the weight as it was before it was quantised; None for one stored densely."""

    @property
    def shape(self) -> tuple[int, int]:
        sizes = self.value.shape[self.value.ndim - len(self.roles) :]
        pairs = list(zip(self.roles, sizes, strict=True))
        inputs, outputs = (math.prod(n for role, n in pairs if role == want) for want in "io")
        return inputs, outputs

    @property
    def dtype(self) -> Any:
        return self.value.dtype

    def astype(self, dtype: Any) -> "Base":
        return dataclasses.replace(self, value=self.value.astype(dtype))

    def dot(self, x: Array) -> Array:
        """`x @ W`, for x of shape (..., in)."""
        matrix, in_axis = self._matrix()
        return contract(x, matrix, in_axis, self.accumulate)

    def dot_t(self, x: Array) -> Array:
        """`x @ W.T`, for x of shape (..., out)."""
        matrix, in_axis = self._matrix()
        return contract(x, matrix, 1 - in_axis, self.accumulate)

    def dots(self, *operands: Operand) -> tuple[Array, ...]:
        """`x @ W` for several x; a quantised W is made dense once for all of them."""
        return tuple(each.times(self) for each in operands)

    def take(self, rows: Array) -> Array:
        """`W[rows]`, for integer rows of any shape within range; the result is (..., out)."""
        return jnp.take(self.dense(), rows, axis=0, mode="clip")

    def dense(self) -> Array:
        """The matrix itself, (in, out)."""
        matrix, in_axis = self._matrix()
        return matrix if in_axis == 0 else matrix.T

    def _matrix(self) -> tuple[Array, int]:
        """The value with its in and out axes flattened, and which of the two is the in axis."""
        value, roles = self.value, self.roles
        if "io" in roles and "oi" in roles:  # in and out axes alternate
            order = sorted(range(len(roles)), key=lambda axis: roles[axis])
            value, roles = value.transpose(order), "".join(sorted(roles))
        inputs, outputs = self.shape
        if roles.startswith("o"):
            return value.reshape(outputs, inputs), 1
        return value.reshape(inputs, outputs), 0


def contract(x: Array, matrix: Array, axis: int, accumulate: Any) -> Array:
    """The product of the last axis of x with an axis of a matrix."""
    numbers = (((x.ndim - 1,), (axis,)), ((), ()))
    return lax.dot_general(x, matrix, numbers, preferred_element_type=accumulate)
