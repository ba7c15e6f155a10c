"""Compute a function's float32 matrix products from bfloat16 operands, with sums in float32.

Tensor cores and the AMX units of CPUs multiply bfloat16 several times as fast as float32. Only the
operands of products are rounded: parameters, norms, softmax and all else keep their dtype. XLA
calls this `DotAlgorithmPreset.BF16_BF16_F32`, and ignores it on CPUs. JAX's derivative of such a
product multiplies a float32 gradient by a bfloat16 operand, which no such unit does. So operands
are rounded here, in the program that is already differentiated.
"""

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


def bfloat16_products(function: Function) -> Function:
    """The same function, whose float32 `dot_general`s take operands rounded to bfloat16.

    So do those of its derivative with respect to the first argument, in reverse mode; its other
    arguments are constants. Products of other dtypes, and inside of `shard_map`, stay as they are.
    """

    @jax.custom_vjp
    def rounded(first: Any, rest: tuple[Any, ...]) -> Any:
        return _rounded(function)(first, *rest)

    def forward(first: Any, rest: tuple[Any, ...]) -> tuple[Any, Any]:
        return _rounded(lambda first, rest: jax.vjp(lambda x: function(x, *rest), first))(
            first, rest
        )

    def backward(pull_back: Any, gradient: Any) -> tuple[Any, None]:
        return _rounded(lambda pull, g: pull(g))(pull_back, gradient)[0], None

    rounded.defvjp(forward, backward)
    return lambda first, *rest: rounded(first, rest)


def _rounded(function: Function) -> Function:
    """The same function of arrays, with the products of the traced program rounded."""

    def run(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = _run(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return run


def _run(jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))
    for eqn in jaxpr.eqns:
        operands = [v.val if isinstance(v, Literal) else values[v] for v in eqn.invars]
        results = _step(jaxpr, eqn, operands)
        values |= dict(zip(eqn.outvars, results, strict=True))
    return [v.val if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]


def _step(jaxpr: Jaxpr, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    """The results of one equation: products are rounded, also those inside loops and branches."""
    params, name = eqn.params, eqn.primitive.name
    if body := jaxprs.call(eqn):
        return _run(*body, operands)
    if name in CUSTOM:  # its rule is not needed any more
        return _run(*jaxprs.inner(params["call_jaxpr"]), operands)
    if name == "dot_general" and _can_round(eqn, *operands):
        low = (each.astype(jnp.bfloat16) for each in operands)
        return [eqn.primitive.bind(*low, **params | {"preferred_element_type": jnp.float32})]
    if name in WITH_BODIES:
        eqn = eqn.replace(params={key: _rewritten(value) for key, value in params.items()})
    return jaxprs.apply(jaxpr, eqn, operands)


def _can_round(eqn: JaxprEqn, left: Array, right: Array) -> bool:
    """Whether both operands are float32, and XLA has such a product of bfloat16 on CPUs.

    jaxlib 0.10.1 has none for a matrix with its first axis contracted, and a batch of matrices.
    """
    (contracted, _), _ = eqn.params["dimension_numbers"]
    missing = left.ndim == 2 and right.ndim > 2 and contracted == (0,)
    return left.dtype == right.dtype == jnp.float32 and not missing


def _rewritten(value: Any) -> Any:
    """A parameter of an equation, with the products rounded if it is a jaxpr, or several."""
    if isinstance(value, ClosedJaxpr):
        body = functools.partial(_run, value.jaxpr, value.consts)
        return jax.make_jaxpr(lambda *inputs: body(inputs))(*value.in_avals)
    if isinstance(value, Jaxpr):
        closed = _rewritten(ClosedJaxpr(value, ()))
        assert not closed.consts, "an open jaxpr has no place for constants"
        return closed.jaxpr
    return tuple(map(_rewritten, value)) if isinstance(value, tuple) else value
