"""Compute a function's float32 matrix products from bfloat16 operands, with sums in float32.

Tensor cores and the AMX units of CPUs multiply bfloat16 several times as fast as float32. Only the
operands of products are rounded: parameters, norms, softmax and all else keep their dtype. XLA
calls this `DotAlgorithmPreset.BF16_BF16_F32`, and ignores it on CPUs. JAX's derivative of such a
product multiplies a float32 gradient by a bfloat16 operand, which no such unit does. So operands
are rounded here, in the program that is already differentiated.

Without such a unit, products of bfloat16 are slower than those of float32. Rounded operands are
then multiplied in float32, which holds their products exactly: only the order of sums differs.

On CPUs, XLA (jaxlib 0.10.1) has a fast product of bfloat16 only for `[..., m, k] @ [..., k, n]` in
row-major order. It multiplies other orders in float32, and fails at run time where it reorders a
product itself after it has chosen. So products get this order here, and barriers keep it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from lora_jax.transform import jaxprs

Function = Callable[..., Any]
Params = Mapping[str, Any]
WITH_BODIES = (*jaxprs.JIT, *jaxprs.REMAT, "scan", "while", "cond")


def bfloat16_products(function: Function, has_unit: bool = True) -> Function:
    """The same function, whose float32 `dot_general`s take operands rounded to bfloat16.

    So do those of its derivative with respect to the first argument, in reverse mode; its other
    arguments are constants. Products of other dtypes, those that ask for a precision, and those
    inside of `shard_map` stay as they are.

    Args:
      has_unit: whether the device multiplies bfloat16; if not, rounded operands stay in float32.
    """
    rewriter = _Rewriter(_in_bfloat16 if has_unit else _in_float32)

    @jax.custom_vjp
    def rounded(first: Any, rest: tuple[Any, ...]) -> Any:
        return rewriter.rounded(function)(first, *rest)

    def forward(first: Any, rest: tuple[Any, ...]) -> tuple[Any, Any]:
        return rewriter.rounded(lambda first, rest: jax.vjp(lambda x: function(x, *rest), first))(
            first, rest
        )

    def backward(pull_back: Any, gradient: Any) -> tuple[Any, None]:
        return rewriter.rounded(lambda pull, g: pull(g))(pull_back, gradient)[0], None

    rounded.defvjp(forward, backward)
    return lambda first, *rest: rounded(first, rest)


@dataclasses.dataclass(frozen=True)
class _Rewriter(jaxprs.Walk):
    multiply: Callable[[Array, Array, Params], Array]
    """The product of two operands, which it rounds, by the parameters of a `dot_general`."""

    def rounded(self, function: Function) -> Function:
        """The same function of arrays, with the products of the traced program rounded."""

        def run(*args: Any) -> Any:
            closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
            outputs = self.run(closed.jaxpr, closed.consts, jax.tree.leaves(args))
            return jax.tree.unflatten(jax.tree.structure(shape), outputs)

        return run

    def called(self, eqn: JaxprEqn) -> jaxprs.Body | None:
        if eqn.primitive.name in jaxprs.CUSTOM:  # its rule is not needed any more
            return jaxprs.any_call(eqn)
        return jaxprs.call(eqn)

    def operation(self, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
        """The results of one equation: products are rounded, also those inside loops, branches."""
        params, name = eqn.params, eqn.primitive.name
        if name == "dot_general" and _is_float32(eqn) and jaxprs.precision(eqn) in ("", "default"):
            left, right = operands
            return [self.multiply(left, right, params)]
        if name in WITH_BODIES:
            eqn = eqn.replace(params={key: self.within(value) for key, value in params.items()})
        return jaxprs.apply(eqn, operands)

    def within(self, value: Any) -> Any:
        """A parameter of an equation, with the products rounded if it is a jaxpr, or several."""
        if isinstance(value, ClosedJaxpr):
            body = functools.partial(self.run, value.jaxpr, value.consts)
            return jax.make_jaxpr(lambda *inputs: body(inputs))(*value.in_avals)
        if isinstance(value, Jaxpr):
            closed = self.within(ClosedJaxpr(value, ()))
            assert not closed.consts, "an open jaxpr has no place for constants"
            return closed.jaxpr
        return tuple(map(self.within, value)) if isinstance(value, tuple) else value


def _is_float32(eqn: JaxprEqn) -> bool:
    avals: list[Any] = [each.aval for each in eqn.invars]
    return all(each.dtype == jnp.float32 for each in avals)


def _in_float32(left: Array, right: Array, params: Params) -> Array:
    """The product of rounded operands in float32; XLA does not simplify this way of rounding."""
    low = jnp.finfo(jnp.bfloat16)
    left, right = (jax.lax.reduce_precision(each, low.nexp, low.nmant) for each in (left, right))
    return _dot(left, right, params)


def _in_bfloat16(left: Array, right: Array, params: Params) -> Array:
    if jax.default_backend() == "cpu":
        return _as_matrices(left, right, params["dimension_numbers"])
    return _dot(left.astype(jnp.bfloat16), right.astype(jnp.bfloat16), params)


def _dot(left: Array, right: Array, params: Params) -> Array:
    return jax.lax.dot_general_p.bind(
        left, right, **{**params, "preferred_element_type": jnp.dtype(jnp.float32)}
    )


def _as_matrices(left: Array, right: Array, dimensions: Any) -> Array:
    """The product as `[*batch, m, k] @ [*batch, k, n]`, whatever the order of the axes."""
    (contracted, right_contracted), (batch, right_batch) = dimensions
    rows = [axis for axis in range(left.ndim) if axis not in (*contracted, *batch)]
    columns = [axis for axis in range(right.ndim) if axis not in (*right_contracted, *right_batch)]
    sizes, heights = [left.shape[i] for i in batch], [left.shape[i] for i in rows]
    widths = [right.shape[i] for i in columns]
    summed = math.prod(left.shape[i] for i in contracted)
    left = _in_order(left, (*batch, *rows, *contracted), (*sizes, math.prod(heights), summed))
    shape = (*sizes, summed, math.prod(widths))
    right = _in_order(right, (*right_batch, *right_contracted, *columns), shape)
    product = jnp.matmul(left, right, preferred_element_type=jnp.float32)
    return jax.lax.optimization_barrier(product).reshape(*sizes, *heights, *widths)


def _in_order(operand: Array, axes: Sequence[int], shape: Sequence[int]) -> Array:
    """The transposed and reshaped operand in bfloat16, row-major in memory.

    A reshape that takes an axis away is row-major for XLA, a transpose alone is not.
    """
    moved = operand[None].transpose(0, *(1 + axis for axis in axes)).reshape(shape)
    return jax.lax.optimization_barrier(moved.astype(jnp.bfloat16))
