"""How frozen weights are stored in fewer bits (NF4 and int8), and products with such weights.

QLoRA (Dettmers et al. 2023, arXiv 2305.14314) is any variant on a base of this kind: the weight is
dequantised where it is used, and gets no gradient.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from lora_jax.base import replicated
from lora_jax.quantization import nf4
from lora_jax.variant import Base, Operand

STATIC = {"static": True}
LEAST = np.float32(1e-36)
"""The smallest scale to divide by: the reciprocal of less may overflow."""
MOST = np.float32(1e30)
"""The largest magnitude to store: the reciprocal of much more, or a sum of scales, fails."""

Stored = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Storage:
    """A way to store an (in, out) matrix in plain arrays; static and hashable."""

    def store(self, matrix: Array) -> Stored:
        """The arrays that stand for a floating-point (in, out) matrix of magnitudes up to `MOST`.

        A non-finite entry corrupts its block or column; with double quantisation, the whole matrix.
        """
        raise NotImplementedError

    def load(self, stored: Stored, size: tuple[int, int], dtype: Any) -> Array:
        """Restore the matrix, of shape `size` = (in, out), in float32; then cast it."""
        raise NotImplementedError

    def take(self, stored: Stored, rows: Array, size: tuple[int, int], dtype: Any) -> Array:
        """`load(...)[rows]`, of shape (..., out), for rows in range; dequantises no other rows."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class NF4(Storage):
    """4-bit NormalFloat with a scale for each block of a column: W = absmax * code.

    Dettmers et al. 2023, section 3, equations 1 to 6; 4.5 bits a weight, 4.127 with
    `double_quant`. A block runs along the input axis, as in bitsandbytes, which flattens torch's
    (out, in); the last one of a column may be shorter. Where `block` divides `in`, the values are
    those of bitsandbytes to the bit. With `double_quant` this holds except for the scales' mean,
    which depends on the order of a sum. The scales may then differ by rounding errors, and by one
    step of their 8 bits where such an error crosses a threshold (1 in 10^4). (These are the
    thresholds of bitsandbytes' CPU kernel; its CUDA kernel chooses another step for 1 scale in
    10^3.)

    Arrays; the first two can be sharded like the matrix:
      codes: uint8 (in / 2, out), rows 2i and 2i + 1 in the high and the low bits.
      absmax: float32 (blocks, out), or uint8 codes of their distances from the mean.
      nested_absmax: float32, one for every 256 of those, in the order of (out, blocks).
      nested_offset: float32, the mean.
    """

    block: int = 64
    double_quant: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.block, int) or self.block < 2 or self.block % 2:
            raise ValueError(f"block must be an even integer of at least 2, got {self.block!r}")

    def store(self, matrix: Array) -> Stored:
        inputs, outputs = matrix.shape
        blocks = self._blocks(inputs)
        matrix = _pad(matrix.astype(jnp.float32), blocks * self.block)
        matrix = matrix.reshape(blocks, self.block, outputs)
        scaled, absmax = _scale(matrix, axis=1)
        codes = nf4.encode(scaled).reshape(-1, outputs)[: inputs + inputs % 2]
        stored = {"codes": nf4.pack(codes), "absmax": absmax}
        return stored | self._nest(absmax) if self.double_quant else stored

    def load(self, stored: Stored, size: tuple[int, int], dtype: Any) -> Array:
        inputs, outputs = size
        absmax = self._absmax(stored, size)
        scales = jnp.broadcast_to(absmax[:, None], (len(absmax), self.block, outputs))
        values = nf4.decode(nf4.unpack(stored["codes"])[:inputs])
        return (values * scales.reshape(-1, outputs)[:inputs]).astype(dtype)

    def take(self, stored: Stored, rows: Array, size: tuple[int, int], dtype: Any) -> Array:
        shift = jnp.where(rows % 2 == 0, 4, 0).astype(jnp.uint8)
        codes = _rows(stored["codes"], rows // 2) >> shift[..., None] & 15
        scales = _rows(self._absmax(stored, size), rows // self.block)
        return (nf4.decode(codes) * scales).astype(dtype)

    def _blocks(self, inputs: int) -> int:
        return -(-inputs // self.block)

    def _nest(self, absmax: Array) -> Stored:
        """Quantise the scales: `absmax` as codes, and the arrays that decode them."""
        absmax = replicated(absmax)  # it is about to be flattened
        blocks, outputs = absmax.shape
        offset = absmax.mean()
        groups = _pad((absmax - offset).T.reshape(-1), -(-absmax.size // 256) * 256)
        scaled, nested = _scale(groups.reshape(-1, 256), axis=1)
        codes = nf4.encode_dynamic(scaled).reshape(-1)[: absmax.size].reshape(outputs, blocks).T
        return {"absmax": codes, "nested_absmax": nested, "nested_offset": offset}

    def _absmax(self, stored: Stored, size: tuple[int, int]) -> Array:
        """The scales, (blocks, out)."""
        if not self.double_quant:
            return stored["absmax"]
        blocks, outputs = self._blocks(size[0]), size[1]
        nested = stored["nested_absmax"]
        nested = jnp.broadcast_to(nested[:, None], (len(nested), 256))
        nested = nested.reshape(-1)[: blocks * outputs].reshape(outputs, blocks).T
        return nf4.decode_dynamic(stored["absmax"], nested, stored["nested_offset"])


@dataclasses.dataclass(frozen=True)
class Int8(Storage):
    """8-bit integers with one scale for each column: W = absmax / 127 * code, rounded to even.

    The weights of LLM.int8 (Dettmers et al. 2022, arXiv 2208.07339, section 2.1, "vector-wise"),
    as in bitsandbytes to the bit. Its 8-bit activations are not part of storage.

    Arrays, which can be sharded like the matrix:
      codes: int8 (in, out).
      absmax: float32 (1, out).
    """

    def store(self, matrix: Array) -> Stored:
        matrix = matrix.astype(jnp.float32)
        absmax = jnp.max(jnp.abs(matrix), axis=0, keepdims=True)
        codes = jnp.round(matrix * (1 / jnp.maximum(absmax, LEAST) * 127))
        return {"codes": codes.astype(jnp.int8), "absmax": absmax}

    def load(self, stored: Stored, size: tuple[int, int], dtype: Any) -> Array:
        return _from_int8(stored["codes"], stored["absmax"], dtype)

    def take(self, stored: Stored, rows: Array, size: tuple[int, int], dtype: Any) -> Array:
        codes = _rows(stored["codes"], rows)
        absmax = stored["absmax"].reshape((1,) * rows.ndim + (-1,))
        return _from_int8(codes, absmax, dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized(Base):
    """A frozen weight matrix, stored in fewer bits, and products with it (see `quantized`).

    It is dequantised for each product, and again for the backward pass, which keeps only the stored
    arrays. So a loop over layers never holds more than one dense matrix. The stored arrays have no
    gradient. Products support reverse mode, and forward mode over it.
    """

    value: Stored  # type: ignore[assignment]
    """The arrays that `storage` made from the (in, out) matrix; so `roles` is always `io`."""

    storage: Storage = dataclasses.field(kw_only=True, metadata=STATIC)
    size: tuple[int, int] = dataclasses.field(kw_only=True, metadata=STATIC)
    dtypes: tuple[Any, ...] = dataclasses.field(kw_only=True, metadata=STATIC)
    """The weight's own dtype, then those that it was cast to, in order."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.size

    @property
    def dtype(self) -> Any:
        return self.dtypes[-1]

    def astype(self, dtype: Any) -> "Quantized":
        return dataclasses.replace(self, dtypes=(*self.dtypes, jnp.dtype(dtype)))

    def dot(self, x: Array) -> Array:
        return _products((Operand(x, self.accumulate),), self)[0]

    def dot_t(self, x: Array) -> Array:
        return _products((Operand(x, self.accumulate),), self, turned=True)[0]

    def dots(self, *operands: Operand) -> tuple[Array, ...]:
        return _products(operands, self)

    def take(self, rows: Array) -> Array:
        value = lax.stop_gradient(self.value)
        return self._cast(self.storage.take(value, rows, self.size, self.dtypes[0]))

    def dense(self) -> Array:
        value = lax.stop_gradient(self.value)
        return self._cast(self.storage.load(value, self.size, self.dtypes[0]))

    def _cast(self, array: Array) -> Array:
        for dtype in self.dtypes[1:]:
            array = array.astype(dtype)
        return array


def require_storable(path: str, weight: Array) -> None:
    """Raise a ValueError if a weight has numbers that no scale can store; skip traced weights."""
    if not isinstance(weight, Tracer) and (count := int(_unstorable(weight))):
        raise ValueError(
            f"'{path}' cannot be quantised: {count} of its numbers are not finite, or beyond "
            f"{MOST:.0e}"
        )


@jax.jit
def _unstorable(weight: Array) -> Array:
    """How many numbers cannot be stored; compiled, so no array of the weight's size is made."""
    return jnp.sum(~(jnp.abs(weight.astype(jnp.float32)) <= MOST))  # written so that NaN counts


def quantized(storage: Storage, matrix: Array) -> Quantized:
    """A frozen (in, out) matrix, stored by `storage`, to multiply by."""
    inputs, outputs = matrix.shape
    return Quantized(
        storage.store(matrix),
        "io",
        storage=storage,
        size=(inputs, outputs),
        dtypes=(jnp.dtype(matrix.dtype),),
    )


def _products(
    operands: tuple[Operand, ...], base: Quantized, turned: bool = False
) -> tuple[Array, ...]:
    """`x @ W` of each x, or `x @ W.T`; the backward pass keeps W as it is stored."""
    # The backward pass is traced elsewhere, where another precision may be set.
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    like = jax.tree.map(jax.typeof, operands)

    def contract(operands: tuple[Operand, ...], matrix: Array) -> tuple[Array, ...]:
        dense = Base(matrix, "oi" if turned else "io")
        with jax.default_matmul_precision(precision):
            return dense.dots(*operands)

    def multiply(operands: tuple[Operand, ...], base: Quantized) -> tuple[Array, ...]:
        return contract(operands, _dense_with(base, operands[0].x))

    def forward(
        operands: tuple[Operand, ...], base: Quantized
    ) -> tuple[tuple[Array, ...], Quantized]:
        return multiply(operands, base), base

    def backward(base: Quantized, gradients: tuple[Array, ...]) -> tuple[Any, None]:
        matrix = _dense_with(base, gradients[0])
        (pulled,) = jax.linear_transpose(lambda each: contract(each, matrix), like)(gradients)
        return pulled, None

    product = jax.custom_vjp(multiply)
    product.defvjp(forward, backward)
    return product(operands, base)


def _dense_with(base: Quantized, operand: Array) -> Array:
    """Dequantise the matrix for a product with `operand`, not earlier and for no other product.

    Otherwise XLA would find that the forward and the backward pass use the same dense matrix, and
    keep it.
    """
    base, _ = lax.optimization_barrier((base, lax.stop_gradient(operand)))
    return base.dense()


def _scale(array: Array, axis: int) -> tuple[Array, Array]:
    """The array divided by its greatest magnitudes along an axis, and these magnitudes."""
    absmax = jnp.max(jnp.abs(array), axis=axis)
    return array * jnp.expand_dims(1 / jnp.maximum(absmax, LEAST), axis), absmax


def _pad(array: Array, length: int) -> Array:
    """Pad the first axis with zeros at its end, up to a length."""
    return jnp.pad(array, [(0, length - len(array))] + [(0, 0)] * (array.ndim - 1))


def _rows(array: Array, rows: Array) -> Array:
    return jnp.take(array, rows, axis=0, mode="clip")


def _from_int8(codes: Array, absmax: Array, dtype: Any) -> Array:
    # Times the reciprocal, as in bitsandbytes.
    return (codes.astype(jnp.float32) * absmax * np.float32(1 / 127)).astype(dtype)
