"""Evaluate a jaxpr with NumPy, operation by operation, without a compiler.

XLA gets at most one operation at a time, and most operations (`lora_jax.compiled.numpy_ops`) not at
all. So a compiler pass that fuses, reorders or reuses memory wrongly has no effect here.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from lora_jax.compiled import numpy_ops
from lora_jax.files.arrays import is_key, to_host
from lora_jax.transform import jaxprs

Rounded = Callable[[np.ndarray], np.ndarray]


class ByNumpy(jaxprs.Walk):
    """Evaluates jaxprs in float64, or each operation in the dtype that it has.

    Args:
      wide: every float is a float64. The jaxpr's own dtypes count only where bits become floats
        (random numbers), so that both ways drop the same activations.
      operands: what a product does to float32 operands of default precision before it multiplies
        them, on the device that the result is compared with.
    """

    def __init__(self, wide: bool, operands: Rounded | None = None) -> None:
        self.wide = wide
        self.operands = operands

    def __call__(self, jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        """The outputs of a jaxpr, as NumPy's arrays."""
        with np.errstate(all="ignore"), jax.enable_x64(True):
            return self.run(jaxpr, consts, args)

    def constant(self, atom: Any, value: Any) -> Any:
        literal = isinstance(atom, Literal)  # others are written as any variable is
        return self.held(atom, np.asarray(value, _dtype(atom))) if literal else value

    def held(self, var: Any, value: Any) -> Any:
        """A value in the form for calculation: rounded to its dtype, and at least float32."""
        dtype = _dtype(var)
        if jnp.issubdtype(dtype, jax.dtypes.extended):
            return value
        value = np.asarray(to_host(value))  # it may be divided over processes
        if not jnp.issubdtype(dtype, jnp.floating):
            return value.astype(dtype, copy=False)
        if self.wide:
            return value.astype(np.float64, copy=False)
        rounded = value.astype(dtype, copy=False)
        return rounded.astype(np.float32) if rounded.dtype.itemsize < 4 else rounded

    def called(self, eqn: JaxprEqn) -> jaxprs.Body | None:
        if eqn.primitive.name == "shard_map":
            raise NotImplementedError("shard_map: exchanges between devices are not evaluated")
        return jaxprs.any_call(eqn)

    def operation(self, eqn: JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        name = eqn.primitive.name
        rule = numpy_ops.rule(name)
        if rule is None or any(not isinstance(each, np.ndarray) for each in operands):
            return self._by_jax(eqn, operands)
        if rule is numpy_ops.product and self.operands is not None and _is_default(eqn):
            operands = [self.operands(each) for each in operands]
        result = rule(eqn.params, *operands)
        if result is NotImplemented:
            return self._by_jax(eqn, operands)
        return result if eqn.primitive.multiple_results else [result]

    def _by_jax(self, eqn: JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        """Run the operation alone, by JAX; if `wide`, in float64, unless it is about bits."""
        params = dict(eqn.params)
        jaxpr_inside = any(isinstance(each, Jaxpr | ClosedJaxpr) for each in params.values())
        bits = eqn.primitive.name.startswith("random_") or "bitcast" in eqn.primitive.name
        if self.wide and not (bits or jaxpr_inside):
            params = {name: _widened(value) for name, value in params.items()}
        else:
            operands = [
                each if is_key(each) else each.astype(_dtype(var))
                for each, var in zip(operands, eqn.invars, strict=True)
            ]
        if jaxpr_inside:
            return jaxprs.apply(eqn, operands)
        if eqn.primitive.name.startswith("random_"):
            return [_random(eqn.primitive, tuple(params.items()), *operands)]
        result = eqn.primitive.bind(*operands, **params)
        return result if eqn.primitive.multiple_results else [result]

    def scan(self, eqn: JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        body, fixed, carry, columns = jaxprs.Scan.of(eqn, operands)
        columns = [_key_rows(each) if is_key(each) else each for each in columns]
        length, carried = eqn.params["length"], len(carry)
        order = range(length - 1, -1, -1) if eqn.params["reverse"] else range(length)
        found: list[list[Any]] = [[None] * length for _ in eqn.outvars[carried:]]
        for number in order:
            rows = [column[number] for column in columns]
            results = self.run(*body, [*fixed, *carry, *rows])
            carry = results[:carried]
            for each, result in zip(found, results[carried:], strict=True):
                each[number] = result
        return [*carry, *map(_stacked, found, eqn.outvars[carried:])]

    def loop(self, eqn: JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        test, asked, body, fixed, carry = jaxprs.While.of(eqn, operands)
        while (rows := np.asarray(self.run(*test, [*asked, *carry])[0])).any():
            new = self.run(*body, [*fixed, *carry])
            # A vmapped loop has a condition for each row.
            carry = new if rows.ndim == 0 else _where_rows(rows, new, carry)
        return carry

    def branch(self, eqn: JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        branches = eqn.params["branches"]
        chosen = min(max(int(operands[0]), 0), len(branches) - 1)
        return self.run(*jaxprs.inner(branches[chosen]), operands[1:])


def rounded_operands(platform: str) -> Rounded | None:
    """How a device's products of default precision round float32 operands; None if they do not.

    GPUs round them to TF32, of 10 bits, and TPUs to bfloat16, of 7.
    """
    if platform == "cpu":
        return None
    dropped = 16 if platform == "tpu" else 13

    def rounded(x: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        half = np.uint32((1 << (dropped - 1)) - 1) + ((bits >> dropped) & np.uint32(1))
        return ((bits + half) >> dropped << dropped).view(np.float32)

    return rounded


def _dtype(var: Any) -> Any:
    return var.aval.dtype


def _is_default(eqn: JaxprEqn) -> bool:
    single = all(_dtype(var) == np.float32 for var in eqn.invars)
    return single and jaxprs.precision(eqn) in ("", "default")


def _widened(value: Any) -> Any:
    is_float = isinstance(value, np.dtype) and jnp.issubdtype(value, jnp.floating)
    return np.dtype(np.float64) if is_float else value


def _key_rows(keys: Any) -> list[Any]:
    """The rows of an array of random keys; JAX would compile a program to read each of them."""
    kind, rows = jax.random.key_impl(keys), np.asarray(jax.random.key_data(keys))
    return [jax.random.wrap_key_data(row, impl=kind) for row in rows]


def _stacked(rows: list[Any], var: Any) -> Any:
    if not rows:
        return np.zeros(var.aval.shape, _dtype(var))
    if not is_key(rows[0]):
        return np.stack(rows)
    data: Any = np.stack([np.asarray(jax.random.key_data(row)) for row in rows])
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(rows[0]))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _random(primitive: Any, params: tuple[tuple[str, Any], ...], *operands: Any) -> Any:
    """An operation on random keys, as one program: by itself, JAX compiles each part of it."""
    return primitive.bind(*operands, **dict(params))


def _where_rows(rows: np.ndarray, new: Sequence[Any], old: Sequence[Any]) -> list[Any]:
    """The new values in some rows, and the old ones in the others; keys as JAX selects them."""
    return [
        jaxprs.where_rows(jnp.asarray(rows), [x], [y])[0]
        if is_key(x)
        else np.where(np.expand_dims(rows, [*range(rows.ndim, np.ndim(x))]), x, y)
        for x, y in zip(new, old, strict=True)
    ]
