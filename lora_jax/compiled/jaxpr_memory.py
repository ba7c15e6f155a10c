"""The memory that evaluating a jaxpr takes, operation by operation.

Each value is held until its last use, as `lora_jax.compiled.by_numpy` does, and as a compiler
assigns buffers to what it does not fuse.
"""

import math
from collections.abc import Iterable
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal

from lora_jax.transform import jaxprs

WIDTH = 8
"""Bytes of a number for NumPy, where nearly all numbers are float64."""


def peak_bytes(jaxpr: Jaxpr, compiled: bool = False) -> int:
    """The most bytes that are held at once, arguments included.

    Args:
      compiled: count each number in its own dtype, no copies of products' operands, and the results
        of an inner jaxpr in its caller's memory. Otherwise count as `lora_jax.compiled.by_numpy`
        evaluates in float64.
    """
    last = {v: eqn for eqn in jaxpr.eqns for v in eqn.invars if not isinstance(v, Literal)}
    kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    held = {v: _size(v, compiled) for v in (*jaxpr.constvars, *jaxpr.invars)}
    total = sum(held.values())
    most = total
    for eqn in jaxpr.eqns:
        results = {v: _size(v, compiled) for v in eqn.outvars if v in last or v in kept}
        made = sum(results.values())
        most = max(most, total + made + _working(eqn, made, compiled))
        held |= results
        total += made
        for var in {v for v in eqn.invars if not isinstance(v, Literal)}:
            if last[var] is eqn and var not in kept:
                total -= held.pop(var, 0)
    return most


def working_bytes(jaxpr: Jaxpr) -> int:
    """The most bytes that a compiled program holds at once besides its arguments."""
    return peak_bytes(jaxpr, True) - _sizes((*jaxpr.constvars, *jaxpr.invars), True)


def _working(eqn: JaxprEqn, made: int, compiled: bool) -> int:
    """The bytes that an operation holds besides its operands and its results (`made` bytes)."""
    if eqn.primitive.name == "dot_general":  # copied, so that NumPy can multiply matrices
        return 0 if compiled else _sizes(eqn.invars, compiled)
    bodies = jaxprs.inside(eqn)
    inside = [peak_bytes(body, compiled) - _sizes(body.invars, compiled) for body in bodies]
    most = max(inside, default=0)
    if eqn.primitive.name == "scan":
        return most if compiled else most + _sizes(eqn.outvars, compiled)
    return max(most - made, 0) if compiled else most


def _sizes(values: Iterable[Any], compiled: bool) -> int:
    return sum(_size(var, compiled) for var in values)


def _size(var: Any, compiled: bool) -> int:
    width = getattr(getattr(var.aval, "dtype", None), "itemsize", WIDTH) if compiled else WIDTH
    return width * math.prod(getattr(var.aval, "shape", ()))
