"""How often the loops of a compiled program run.

Programs for CPUs note it; those for TPUs do not. For these, a loop's counter is computed: all that
depends on constants alone is computed, turn by turn, until the condition is false.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

from lora_jax.compiled.hlo import Instruction, Module, Shape

LIMIT = 10_000  # the most turns that are computed; a longer loop's length stays unknown

_COMPARE = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}
_ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "maximum": max,
    "minimum": min,
    "and": operator.and_,
    "or": operator.or_,
}
_WHOLE = ("pred", "s", "u")
_SAME = ("copy", "bitcast", "reshape", "optimization-barrier")


def trips(module: Module, loop: Instruction, state: Any) -> int | None:
    """How often a `while` runs its body; None if that depends on data.

    `state` is the loop's first state: a number, a tuple of states, or None for what is not known.
    """
    noted = loop.backend_config.get("known_trip_count")
    if isinstance(noted, Mapping) and str(noted.get("n", "")).isdigit():
        return int(noted["n"])
    (condition,), (body,) = loop.calls("condition"), loop.calls("body")
    for turn in range(LIMIT + 1):
        goes_on = result(module, condition, (state,))
        if goes_on is None:
            return None
        if not goes_on:
            return turn
        state = result(module, body, (state,))
    return None


def lasting(module: Module, loop: Instruction, state: Any) -> Any:
    """The part of a loop's first state that every turn starts with; the rest is None."""
    (body,) = loop.calls("body")
    while (after := _common(state, result(module, body, (state,)))) != state:
        state = after
    return state


def result(module: Module, computation: str, arguments: tuple[Any, ...]) -> Any:
    """The result of a computation, as far as it follows from the arguments that are known."""
    return Known(module, computation, arguments)[module.computations[computation].root]


class Known:
    """The values of a computation's instructions that follow from its arguments, by name.

    Values are integers, booleans and tuples of them; None stands for anything else.
    """

    def __init__(self, module: Module, computation: str, arguments: tuple[Any, ...]):
        self._module = module
        self._instructions = module.computations[computation].instructions
        self._arguments = arguments
        self._known: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._known:
            self._known[name] = self._value(self._instructions[name])
        return self._known[name]

    def _value(self, it: Instruction) -> Any:
        match it.opcode:
            case "parameter":
                number = int(it.operands[0])
                return self._arguments[number] if number < len(self._arguments) else None
            case "tuple":
                return tuple(self[name] for name in it.operands)
            case "get-tuple-element":
                whole = self[it.operands[0]]
                return whole[int(it.attributes["index"])] if isinstance(whole, tuple) else None
            case "copy-start":
                return (self[it.operands[0]], self[it.operands[0]], None)
            case "copy-done":
                whole = self[it.operands[0]]
                return whole[0] if isinstance(whole, tuple) else None
            case "fusion" | "call":
                (called,) = it.calls("calls", "to_apply")
                return result(self._module, called, tuple(self[name] for name in it.operands))
            case opcode if opcode in _SAME:
                return self[it.operands[0]]
        return self._number(it)

    def _number(self, it: Instruction) -> Any:
        """The value of an integer or boolean; None for floats, whose rounding is not known here."""
        if not isinstance(it.type, Shape) or it.type.dims or not it.type.dtype.startswith(_WHOLE):
            return None
        if it.opcode == "constant":
            text = it.operands[0]
            return text == "true" if it.type.dtype == "pred" else int(text)
        if it.opcode == "not":
            value = self[it.operands[0]]
            return not value if isinstance(value, bool) else None
        if it.opcode == "compare":
            apply: Any = _COMPARE[it.attributes["direction"]]
        elif it.opcode in _ARITHMETIC:
            apply = _ARITHMETIC[it.opcode]
        else:
            return None
        left, right = (self[name] for name in it.operands)
        return None if left is None or right is None else apply(left, right)


def _common(old: Any, new: Any) -> Any:
    if isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        return tuple(_common(a, b) for a, b in zip(old, new, strict=True))
    return old if old == new else None
