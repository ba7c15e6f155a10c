"""A frozen weight as methods see it: its products, its uses, and what may be seen of it.

`Base` stores a matrix densely, and `WeightUse` says how a function uses it: `discover` finds this.
A method may ask to see a weight's gradient or its inputs before it starts (`Need`). Both are summed
over some batches (`lora_jax.transform.gather`), and given as their leading directions: no array of
a weight's own size is made. `explicit_sharding` is for shardings that are a part of arrays' types,
as on a mesh of `AxisType.Explicit`.
"""

import contextlib
import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec

from lora_jax.table import Table


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


@dataclasses.dataclass(frozen=True)
class Kernel:
    """How an array is the kernel of a convolution that torch has, too."""

    axes: tuple[int, ...]
    """Those of its outputs, its inputs and its places, in torch's order."""
    shape: tuple[int, ...]
    """In torch's order."""
    groups: int
    dilated: bool


@dataclasses.dataclass(frozen=True)
class Use:
    """One way in which a parameter is used."""

    kind: str
    """`product`, `transposed product`, `lookup`, `convolution`, or the name of an operation."""
    merges: str | None = None
    """Why this use needs the merged weight (slower, never wrong); None if it uses the factors."""
    of_part: bool = False
    """Whether it covers only some inputs or outputs of the weight."""
    kernel: Kernel | None = None
    """For a convolution that torch has, too."""

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
    def kernel(self) -> Kernel | None:
        """What kernel it is in torch; None if it is none there, or several."""
        kernels = {use.kernel for use in self.uses if use.kind == "convolution"}
        if len(kernels) != 1 or (only := kernels.pop()) is None:
            return None
        fits = tuple(sorted(only.axes[1:])) == self.inputs and only.axes[:1] == self.outputs
        return only if fits else None

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


def explicit_sharding(array: Array) -> NamedSharding | None:
    """The sharding in an array's type, if there is one; some operations must be given it."""
    sharding = jax.typeof(array).sharding
    return sharding if any(part is not None for part in sharding.spec) else None


def replicated(array: Array) -> Array:
    """The array whole on every device, if a sharding is in its type; else the array itself.

    For operations that JAX does not divide by itself there: a factorisation, or a sum over a
    sharded axis of two factors.
    """
    if (sharding := explicit_sharding(array)) is None:
        return array
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec()))
