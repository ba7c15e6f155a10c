"""The text of a compiled program (`jax.stages.Compiled.as_text()`): computations and instructions.

The syntax: https://openxla.org/xla/operation_semantics and XLA's hlo_parser.cc. Only what is needed
to follow calls and shapes is parsed; attributes stay text.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*"|[(){}\[\],]')
_COMMENT = re.compile(r"/\*index=\d+\*/")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?[\w.-]+ = ")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_ARRAY = re.compile(r"(\w+)\[([^\]]*)\]")


class Shape(NamedTuple):
    """An array's dtype, under XLA's name for it (f32, bf16, s32, pred, ...), and its sizes."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """The size in bytes, rounded up; 0 for a token."""
        return -(-math.prod(self.dims) * _bits(self.dtype) // 8)


Type = Shape | tuple["Type", ...]
"""An array's shape, or a tuple of types."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One operation; `operands` are names, or the text inside a constant or a parameter."""

    name: str
    type: Any  # of Type
    opcode: str
    operands: tuple[str, ...]
    attributes: Mapping[str, str]

    def calls(self, *keys: str) -> list[str]:
        """The names of the computations that attributes name, in the order of `keys`."""
        texts = [self.attributes[key] for key in keys if key in self.attributes]
        return [_bare(name) for text in texts for name in split(text.strip("{}"))]

    @property
    def op_name(self) -> str:
        """Where it comes from in the traced function; "" where the compiler lost it."""
        found = _OP_NAME.search(self.attributes.get("metadata", ""))
        return found[1] if found else ""

    @property
    def frontend_attributes(self) -> dict[str, str]:
        return _pairs(self.attributes.get("frontend_attributes", "{}")[1:-1])

    @property
    def backend_config(self) -> Mapping[str, Any]:
        """What the compiler noted, if that is JSON; otherwise empty."""
        try:
            content = json.loads(self.attributes.get("backend_config", "{}"))
            content = json.loads(content) if isinstance(content, str) else content
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, and which of them is the result."""

    name: str
    instructions: Mapping[str, Instruction]
    root: str


@dataclasses.dataclass(frozen=True)
class Module:
    """All computations by name, the name of the program's own, and how many devices run it."""

    computations: Mapping[str, Computation]
    entry: str
    devices: int


def parse(text: str) -> Module:
    """The module of a compiled program's text; raises a ValueError for another text."""
    head, computations, entry = "", {}, ""
    name, lines = "", []
    for line in text.splitlines():
        if line.startswith("HloModule"):
            head = line
        elif not name and line.endswith("{") and " -> " in line and not line.startswith(" "):
            is_entry = line.startswith("ENTRY ")
            name, lines = _bare(line.removeprefix("ENTRY ").split(" ", 1)[0]), []
            entry = name if is_entry else entry
        elif name and line.startswith("}"):
            computations[name] = _computation(name, lines)
            name = ""
        elif name and _INSTRUCTION.match(line):
            lines.append(line)
        elif name and lines:  # a constant of several lines
            lines[-1] += " " + line.strip()
    if not head or not entry:
        raise ValueError("not the text of a compiled program: no HloModule with an ENTRY")
    sizes = _pairs(head)
    devices = int(sizes.get("num_partitions", 1)) * int(sizes.get("replica_count", 1))
    return Module(computations, entry, devices)


def split(text: str) -> list[str]:
    """Split text at the commas outside brackets and strings; the parts are stripped."""
    depth, start, parts = 0, 0, []
    for found in _STRUCTURE.finditer(text):
        sign = found[0]
        depth += (sign in "({[") - (sign in ")}]")
        if sign == "," and depth == 0:
            parts.append(text[start : found.start()].strip())
            start = found.end()
    return [part for part in (*parts, text[start:].strip()) if part]


def arrays(kind: Any) -> Iterator[Shape]:
    """The arrays of a type, tuples unpacked."""
    if isinstance(kind, Shape):
        yield kind
    else:
        for each in kind:
            yield from arrays(each)


def _computation(name: str, lines: Sequence[str]) -> Computation:
    found = [_instruction(_COMMENT.sub("", line).strip()) for line in lines]
    (root, *_) = [
        each.name
        for each, line in zip(found, lines, strict=True)
        if line.lstrip().startswith("ROOT ")
    ] or [found[-1].name]
    return Computation(name, {each.name: each for each in found}, root)


def _instruction(line: str) -> Instruction:
    name, rest = line.removeprefix("ROOT ").split(" = ", 1)
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    kind, rest = _type(rest[:end]), rest[end:].strip()
    opcode, _ = rest.split("(", 1)
    end = _closing(rest, len(opcode))
    content = rest[len(opcode) + 1 : end - 1]
    literal = opcode in ("constant", "parameter")
    operands = (content,) if literal else tuple(_bare(o.split(" ")[-1]) for o in split(content))
    return Instruction(_bare(name), kind, opcode, operands, _pairs(rest[end:]))


def _type(text: str) -> Any:
    if text.startswith("("):
        return tuple(_type(part) for part in split(text[1:-1]))
    found = _ARRAY.match(text)
    if found is None:
        raise ValueError(f"not the type of an array: {text!r}")
    dims = tuple(int(size.strip().removeprefix("<=")) for size in split(found[2]))
    return Shape(found[1], dims)


def _closing(text: str, start: int) -> int:
    """The position after the bracket that closes the first one opened at `start` or after."""
    depth = 0
    for found in _STRUCTURE.finditer(text, start):
        depth += (found[0] in "({[") - (found[0] in ")}]")
        if depth == 0:
            return found.end()
    raise ValueError(f"a bracket is not closed: {text[:80]!r}")


def _pairs(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in split(text))
    return {key.strip(): value for key, sign, value in pairs if sign}


def _bare(name: str) -> str:
    return name.strip().removeprefix("%")


def _bits(dtype: str) -> int:
    if dtype == "pred":
        return 8
    digits = re.match(r"[a-z]+(\d+)", dtype)  # f8e4m3fn: 8; a token has none
    return int(digits[1]) if digits else 0
