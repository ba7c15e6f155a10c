"""Compute a function's float32 matrix products from bfloat16 operands, with sums in float32.

Tensor cores and the AMX units of CPUs multiply bfloat16 several times as fast as float32. Only the
operands of products are rounded: parameters, norms, softmax and all else keep their dtype. XLA
calls this `DotAlgorithmPreset.BF16_BF16_F32`, and ignores it on CPUs. JAX's derivative of such a
product multiplies a float32 gradient by a bfloat16 operand, which no such unit does. So operands
are rounded here, in the program that is already differentiated.

Without such a unit, products of bfloat16 are slower than those of float32. Rounded operands are
then multiplied in float32, which holds their products exactly: only the order of sums differs.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from lora_jax.transform import jaxprs

Function = Callable[..., Any]
CUSTOM = ("custom_jvp_call", "custom_vjp_call")
WITH_BODIES = (*jaxprs.JIT, *jaxprs.REMAT, "scan", "while", "cond")


def bfloat16_products(function: Function, has_unit: bool = True) -> Function:
    """The same function, whose float32 `dot_general`s take operands rounded to bfloat16.

    So do those of its derivative with respect to the first argument, in reverse mode; its other
    arguments are constants. Products of other dtypes, and inside of `shard_map`, stay as they are.

    Args:
      has_unit: whether the device multiplies bfloat16; if not, rounded operands stay in float32.
    """
    rewriter = _Rewriter(has_unit)

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
class _Rewriter:
    has_unit: bool

    def rounded(self, function: Function) -> Function:
        """The same function of arrays, with the products of the traced program rounded."""

        def run(*args: Any) -> Any:
            closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
            outputs = self.run(closed.jaxpr, closed.consts, jax.tree.leaves(args))
            return jax.tree.unflatten(jax.tree.structure(shape), outputs)

        return run

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        values |= dict(zip(jaxpr.invars, inputs, strict=True))
        for eqn in jaxpr.eqns:
            operands = [v.val if isinstance(v, Literal) else values[v] for v in eqn.invars]
            results = self.step(jaxpr, eqn, operands)
            values |= dict(zip(eqn.outvars, results, strict=True))
        return [v.val if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]

    def step(self, jaxpr: Jaxpr, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
        """The results of one equation: products are rounded, also those inside loops, branches."""
        params, name = eqn.params, eqn.primitive.name
        if body := jaxprs.call(eqn):
            return self.run(*body, operands)
        if name in CUSTOM:  # its rule is not needed any more
            return self.run(*jaxprs.inner(params["call_jaxpr"]), operands)
        if name == "dot_general" and {each.dtype for each in operands} == {jnp.dtype(jnp.float32)}:
            low = map(self.low if _exists(eqn, *operands) else _in_float32, operands)
            return [eqn.primitive.bind(*low, **params | {"preferred_element_type": jnp.float32})]
        if name in WITH_BODIES:
            eqn = eqn.replace(params={key: self.within(value) for key, value in params.items()})
        return jaxprs.apply(jaxpr, eqn, operands)

    def low(self, operand: Array) -> Array:
        return operand.astype(jnp.bfloat16) if self.has_unit else _in_float32(operand)

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


def _in_float32(operand: Array) -> Array:
    """The operand, rounded to bfloat16, in a way that XLA does not simplify."""
    about = jnp.finfo(jnp.bfloat16)
    return jax.lax.reduce_precision(operand, about.nexp, about.nmant)


def _exists(eqn: JaxprEqn, left: Array, right: Array) -> bool:
    """Whether XLA has such a product of bfloat16 on CPUs.

    jaxlib 0.10.1 has none for a matrix with its first axis contracted, and a batch of matrices.
    """
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return left.ndim > 2 or right.ndim <= 2 or contracted != (0,)
