"""The bytes that a traced function moves between a device and its memory.

A compiler fuses operations by entry into one pass: it reads what they begin with, and writes what
something else needs. Products, lookups and reductions read their operands and write their results.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal

from lora_jax.transform import jaxprs

_PICKS = ("gather", "slice", "dynamic_slice")
"""They read no more of their operand than they give."""
_PUTS = ("scatter", "dynamic_update_slice")
"""They change a part of their operand in place."""
_APART = ("dot_general", "conv_general_dilated", "sort", "reduce_", "arg", "cum", *_PICKS, *_PUTS)


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
        inside = list(map(traffic_bytes, jaxprs.inside(self.eqn)))
        if name == "cond":
            return max(inside)
        return int(self.eqn.params["length"] if name == "scan" else 1) * sum(inside)


def traffic_bytes(jaxpr: Jaxpr) -> int:
    """The bytes that all operations of a jaxpr read and write.

    The body of a loop counts as often as it runs; that of a `while` loop, whose number of rounds no
    trace has, counts once, and of a `cond` the branch with the most.
    """
    results, operations = _run(jaxpr, [_value(var) for var in jaxpr.invars])
    by_entry = [each for each in operations if each.by_entry]
    others = [each for each in operations if not each.by_entry]
    made = {value for each in by_entry for value in each.gives}
    needed = {value for each in others for value in each.takes} | set(results)
    taken = {value for each in by_entry for value in each.takes}
    passes = _total(made & needed) + _total(taken - (made - needed))
    return passes + sum(each.bytes for each in others)


def _run(jaxpr: Jaxpr, inputs: Sequence[_Value]) -> tuple[list[_Value], list[_Operation]]:
    """The results of a jaxpr, and its operations with those of the functions that it calls."""
    held = {var: _value(var) for var in jaxpr.constvars}
    held |= dict(zip(jaxpr.invars, inputs, strict=True))
    operations: list[_Operation] = []
    for eqn in jaxpr.eqns:
        takes = _read(held, eqn.invars)
        if body := jaxprs.call(eqn):
            gives, called = _run(body[0], takes)
            operations += called
        else:
            gives = [_value(var) for var in eqn.outvars]
            operations.append(_Operation(eqn, takes, gives))
        held |= dict(zip(eqn.outvars, gives, strict=True))
    return _read(held, jaxpr.outvars), operations


def _read(held: Mapping[Any, _Value], atoms: Iterable[Any]) -> list[_Value]:
    return [_Value(0) if isinstance(atom, Literal) else held[atom] for atom in atoms]


def _value(atom: Any) -> _Value:
    width = getattr(getattr(atom.aval, "dtype", None), "itemsize", 0)
    return _Value(width * math.prod(getattr(atom.aval, "shape", ())))


def _total(values: Iterable[_Value]) -> int:
    return sum(each.bytes for each in values)
