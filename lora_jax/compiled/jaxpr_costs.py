"""What evaluating a jaxpr costs: operations, memory, and traffic between a device and its memory.

The body of a loop counts as often as it runs; that of a `while` loop, whose number of rounds no
trace has, counts once, and of a `cond` the branch with the most.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal

from lora_jax.transform import jaxprs

WIDTH = 8
"""Bytes of a number for NumPy, where nearly all numbers are float64."""
_PICKS = ("gather", "slice", "dynamic_slice")
"""They read no more of their operand than they give."""
_PUTS = ("scatter", "dynamic_update_slice")
"""They change a part of their operand in place."""
_APART = ("dot_general", "conv_general_dilated", "sort", "reduce_", "arg", "cum", *_PICKS, *_PUTS)


def product_flops(jaxpr: Jaxpr) -> int:
    """The FLOPs of all products (`dot_general`) of a jaxpr: 2 for each multiplication.

    Sums, norms and other operations by entry are left out.
    """

    def of_equation(eqn: JaxprEqn) -> int:
        if eqn.primitive.name != "dot_general":
            return _of_bodies(eqn, product_flops)
        (contracted, _), _ = eqn.params["dimension_numbers"]
        left: Any = eqn.invars[0].aval
        out: Any = eqn.outvars[0].aval
        return 2 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracted)

    return sum(map(of_equation, jaxpr.eqns))


def _of_bodies(eqn: JaxprEqn, cost: Callable[[Jaxpr], int]) -> int:
    """What all that runs inside an equation costs."""
    inside = list(map(cost, jaxprs.inside(eqn)))
    if eqn.primitive.name == "cond":
        return max(inside, default=0)
    return int(eqn.params["length"] if eqn.primitive.name == "scan" else 1) * sum(inside)


# -- memory ----------------------------------------------------------------------------------------


def peak_bytes(jaxpr: Jaxpr, compiled: bool = False) -> int:
    """The most bytes that are held at once, arguments included.

    Each value is held until its last use, as `lora_jax.compiled.by_numpy` does, and as a compiler
    assigns buffers to what it does not fuse.

    Args:
      compiled: count each number in its own dtype, no copies of products' operands, and the results
        of an inner jaxpr in its caller's memory. Otherwise count as `lora_jax.compiled.by_numpy`
        evaluates in float64.
    """
    last = jaxprs.last_uses(jaxpr)
    held = {v: _size(v, compiled) for v in (*jaxpr.constvars, *jaxpr.invars)}
    total = sum(held.values())
    most = total
    for eqn in jaxpr.eqns:
        results = {v: _size(v, compiled) for v in eqn.outvars if v in last}
        made = sum(results.values())
        most = max(most, total + made + _working(eqn, made, compiled))
        held |= results
        total += made
        for var in {v for v in eqn.invars if not isinstance(v, Literal)}:
            if last[var] is eqn:
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


# -- traffic ---------------------------------------------------------------------------------------


def traffic_bytes(jaxpr: Jaxpr) -> int:
    """The bytes that all operations of a jaxpr read from a device's memory and write to it.

    A compiler fuses operations by entry into one pass: it reads what they begin with, and writes
    what something else needs. Products, lookups and reductions read their operands and write their
    results.
    """
    operations = _Operations()
    results = operations.run(jaxpr, jaxpr.constvars, [_value(var) for var in jaxpr.invars])
    by_entry = [each for each in operations.found if each.by_entry]
    others = [each for each in operations.found if not each.by_entry]
    made = {value for each in by_entry for value in each.gives}
    needed = {value for each in others for value in each.takes} | set(results)
    taken = {value for each in by_entry for value in each.takes}
    passes = _total(made & needed) + _total(taken - (made - needed))
    return passes + sum(each.bytes for each in others)


@dataclasses.dataclass(frozen=True, eq=False)
class _Value:
    """What a variable holds in one call of a function; a function may be called several times."""

    bytes: int


@dataclasses.dataclass(frozen=True)
class _Operation:
    """An equation with the values that it takes and gives."""

    eqn: JaxprEqn
    takes: Sequence[_Value]
    gives: Sequence[_Value]

    @property
    def by_entry(self) -> bool:
        name = self.eqn.primitive.name
        apart = name.startswith(_APART) and name != "reduce_precision"
        return not (apart or jaxprs.inside(self.eqn))

    @property
    def bytes(self) -> int:
        """What it reads and writes, if it is not by entry."""
        name = self.eqn.primitive.name
        if name.startswith(_PICKS):
            return 2 * _total(self.gives)
        if name.startswith(_PUTS):
            return 2 * _total(self.takes[1:])
        if name.startswith(_APART):
            return _total(self.takes) + _total(self.gives)
        return _of_bodies(self.eqn, traffic_bytes)


class _Operations(jaxprs.Walk):
    """Finds the operations of a jaxpr, with those of the functions that it calls."""

    def __init__(self) -> None:
        self.found: list[_Operation] = []

    def constant(self, atom: Any, value: Any) -> _Value:
        return _Value(0) if isinstance(atom, Literal) else _value(atom)

    def operation(self, eqn: JaxprEqn, operands: list[_Value]) -> list[_Value]:
        gives = [_value(var) for var in eqn.outvars]
        self.found.append(_Operation(eqn, operands, gives))
        return gives


def _value(atom: Any) -> _Value:
    width = getattr(getattr(atom.aval, "dtype", None), "itemsize", 0)
    return _Value(width * math.prod(getattr(atom.aval, "shape", ())))


def _total(values: Iterable[_Value]) -> int:
    return sum(each.bytes for each in values)
