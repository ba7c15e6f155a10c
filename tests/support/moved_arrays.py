"""What a compiled program moves between devices: the results of its collectives, from its text."""

import math
import re
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\(([^)]*)", re.MULTILINE
)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


class Moved(NamedTuple):
    """An array that a collective gives to each device."""

    kind: str
    dtype: str
    """XLA's name for it."""
    dims: tuple[int, ...]
    grows: int
    """How often it is as large as the part that the device gave; 1 if both are of one size."""

    @property
    def bare(self) -> tuple[int, ...]:
        """The sizes without axes of one: of one layer of a stack."""
        return tuple(size for size in self.dims if size != 1)


def moved(text: str) -> list[Moved]:
    """The results of all collectives of a compiled program for CPUs; loops count once."""
    types, found = {}, []
    for name, kind, opcode, operands in _INSTRUCTION.findall(text):
        types[name] = [
            (dtype, tuple(map(int, re.findall(r"\d+", dims))))
            for dtype, dims in _ARRAY.findall(kind)
        ]
        if opcode in KINDS:
            given = [array for each in re.findall(r"%([\w.-]+)", operands) for array in types[each]]
            for (dtype, dims), (_, part) in zip(types[name], given, strict=True):
                found.append(Moved(opcode, dtype, dims, math.prod(dims) // math.prod(part)))
    return found
