"""The memory that evaluating a jaxpr takes, operation by operation, each value held until its last
use (as `lora_jax.by_numpy` does)."""

import math
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal

from lora_jax import jaxprs

WIDTH = 8
"""Bytes of a number: of a float64, which nearly all of them are."""


def peak_bytes(jaxpr: Jaxpr) -> int:
    """The most bytes that are held at once, arguments included."""
    return WIDTH * _peak(jaxpr)


def _peak(jaxpr: Jaxpr) -> int:
    last = {v: eqn for eqn in jaxpr.eqns for v in eqn.invars if not isinstance(v, Literal)}
    kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    held = {v: _size(v) for v in (*jaxpr.constvars, *jaxpr.invars)}
    total = sum(held.values())
    most = total
    for eqn in jaxpr.eqns:
        results = {v: _size(v) for v in eqn.outvars if v in last or v in kept}
        most = max(most, total + sum(results.values()) + _working(eqn))
        held |= results
        total += sum(results.values())
        for var in {v for v in eqn.invars if not isinstance(v, Literal)}:
            if last[var] is eqn and var not in kept:
                total -= held.pop(var, 0)
    return most


def _working(eqn: JaxprEqn) -> int:
    """What an operation holds beside its operands and results."""
    if eqn.primitive.name == "dot_general":
        return sum(map(_size, eqn.invars))  # copied, so that NumPy can multiply matrices
    bodies = [
        jaxprs.inner(each)[0]
        for value in eqn.params.values()
        for each in (value if isinstance(value, tuple | list) else (value,))
        if hasattr(each, "eqns") or hasattr(each, "jaxpr")
    ]
    inside = [_peak(body) - sum(map(_size, body.invars)) for body in bodies]
    stacked = sum(map(_size, eqn.outvars)) if eqn.primitive.name == "scan" else 0
    return max(inside, default=0) + stacked


def _size(var: Any) -> int:
    return math.prod(getattr(var.aval, "shape", ()))
