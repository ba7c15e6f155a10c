"""What a compiled program moves between devices: every collective, its bytes, how often it runs.

moved = collectives(jax.jit(step).lower(*arguments).compile().as_text())
by_kind(moved)   # {"all-gather": Total(count=160, bytes=...), ...}

The numbers are read from the program that XLA made, and hold for its backend only: programs for
CPUs, for instance, gather bfloat16 as float32.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_jax.compiled.device_groups import Groups, groups
from lora_jax.compiled.hlo import Computation, Instruction, Module, Shape, arrays, parse
from lora_jax.compiled.loops import Known, lasting, trips

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: one of `KINDS`, also if it starts asynchronously or is fused with other work.
      name: the name of the instruction.
      operands, results: their shapes on one device.
      bytes: of one device and execution, the larger side: the results of an all-gather, the
        operands of a reduce-scatter, the arrays of the others, which keep their size. What travels
        over links depends on the algorithm: (n - 1) / n of this among n devices for a ring's
        all-gather or reduce-scatter, twice that for its all-reduce.
      times: executions in one run of the program, the product of the lengths of the loops around.
      exact: whether `times` is known. Otherwise the collective is in a loop of unknown length,
        counted as one turn, or in a branch, counted as taken.
      groups: the groups of devices that exchange data, by their places in the program's order
        (`mesh.devices.flat`); for a permutation, the devices that it connects.
      op_name: where it comes from in the traced function; "" where the compiler lost it.
    """

    kind: str
    name: str
    operands: tuple[Shape, ...]
    results: tuple[Shape, ...]
    bytes: int
    times: int
    exact: bool
    groups: Groups
    op_name: str


@dataclasses.dataclass(frozen=True)
class Total:
    """How often collectives run in one run of a program, and their bytes (see `Collective`)."""

    count: int
    bytes: int
    exact: bool


def collectives(hlo_text: str) -> list[Collective]:
    """Every collective of a compiled program, in the order in which they are met along calls.

    Args:
      hlo_text: the text from `jax.stages.Compiled.as_text()`.

    Raises:
      ValueError: it is not the text of a program.
    """
    module = parse(hlo_text)
    return list(_walk(_Visit(module, _chains(module), module.computations[module.entry])))


def by_kind(found: Sequence[Collective]) -> dict[str, Total]:
    """Executions and bytes, in one run of the program, of each kind that occurs."""
    totals = {}
    for kind in KINDS:
        if own := [each for each in found if each.kind == kind]:
            totals[kind] = Total(
                count=sum(each.times for each in own),
                bytes=sum(each.times * each.bytes for each in own),
                exact=all(each.exact for each in own),
            )
    return totals


@dataclasses.dataclass(frozen=True)
class _Visit:
    """One call of a computation: what is known of its arguments, and how often it runs.

    `fused` and `op_name` come from the fusion around it, if there is one.
    """

    module: Module
    chains: Mapping[str, set[str]]
    computation: Computation
    arguments: tuple[Any, ...] = ()
    times: int = 1
    exact: bool = True
    fused: bool = False
    op_name: str = ""

    def into(self, name: str, arguments: tuple[Any, ...], **changes: Any) -> "_Visit":
        called = self.module.computations[name]
        return dataclasses.replace(self, computation=called, arguments=arguments, **changes)


def _walk(visit: _Visit) -> Iterator[Collective]:
    known = Known(visit.module, visit.computation.name, visit.arguments)
    for it in visit.computation.instructions.values():
        chain = it.frontend_attributes.get("chain_id", "") if visit.fused else ""
        if chain in visit.chains and it.name not in visit.chains[chain]:
            continue  # a later link of the chain
        if it.opcode.removesuffix("-start") in KINDS:
            yield _collective(visit, it)
        for inner in _inner(visit, it, known):
            yield from _walk(inner)


def _inner(visit: _Visit, it: Instruction, known: Known) -> Iterator[_Visit]:
    """The computations that an instruction runs, without those that combine two numbers."""
    match it.opcode.removesuffix("-start"):
        case "while":
            start = known[it.operands[0]]
            turns, state = trips(visit.module, it, start), (lasting(visit.module, it, start),)
            exact = visit.exact and turns is not None
            times = visit.times * (1 if turns is None else turns)
            (body,), (condition,) = it.calls("body"), it.calls("condition")
            yield visit.into(body, state, times=times, exact=exact, fused=False)
            times += visit.times  # the condition runs once more, to end the loop
            yield visit.into(condition, state, times=times, exact=exact, fused=False)
        case "conditional":
            keys = "branch_computations", "true_computation", "false_computation"
            for branch, operand in zip(it.calls(*keys), it.operands[1:], strict=True):
                yield visit.into(branch, (known[operand],), exact=False)
        case "fusion" | "call" | "async" as opcode:
            given = tuple(known[operand] for operand in it.operands)
            fused = visit.fused or opcode == "fusion"
            for called in it.calls("calls", "to_apply"):
                yield visit.into(called, given, fused=fused, op_name=it.op_name or visit.op_name)


def _chains(module: Module) -> dict[str, set[str]]:
    """The names of the first instructions of each chain, by the chain's id.

    Programs for TPUs split a collective into a chain of fusions with other work, each of which
    repeats it.
    """
    chains: dict[str, set[str]] = {}
    for computation in module.computations.values():
        inside = computation.instructions
        for it in inside.values():
            if it.attributes.get("custom_call_target") == '"AsyncCollectiveStart"':
                for first in (inside[name] for name in it.operands):
                    if chain := first.frontend_attributes.get("chain_id"):
                        chains.setdefault(chain, set()).add(first.name)
    return chains


def _collective(visit: _Visit, it: Instruction) -> Collective:
    kind, inside = it.opcode.removesuffix("-start"), visit.computation.instructions
    operands = tuple(shape for name in it.operands for shape in arrays(inside[name].type))
    # The type of a start has the results after the operands, except for an all-reduce.
    starts = it.opcode.endswith("-start") and kind != "all-reduce"
    results = tuple(arrays(it.type[1] if starts else it.type))
    if kind == "all-reduce" and (kept := _scattered(visit.computation, it)) is not None:
        kind, results = "reduce-scatter", kept
    larger = results if kind == "all-gather" else operands
    return Collective(
        kind=kind,
        name=it.name,
        operands=operands,
        results=results,
        bytes=sum(shape.bytes for shape in larger),
        times=visit.times,
        exact=visit.exact,
        groups=groups(it, visit.module.devices),
        op_name=it.op_name or visit.op_name,
    )


def _scattered(computation: Computation, it: Instruction) -> tuple[Shape, ...] | None:
    """What a computation keeps of an all-reduce, if that is a slice of each of its arrays.

    Programs for TPUs have a reduce-scatter in this form, as a fusion.
    """
    inside = computation.instructions
    root = inside[computation.root]
    ends = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for end in ends:
        while end.opcode == "bitcast":
            end = inside[end.operands[0]]
        if end.opcode != "dynamic-slice":
            return None
        source = inside[end.operands[0]]
        while source.opcode in ("bitcast", "get-tuple-element"):
            source = inside[source.operands[0]]
        if source is not it:
            return None
    return tuple(arrays(root.type))
