"""Follow parameters through a jaxpr without computing anything, and record every use.

This mirrors `evaluate`, with the same rules: an adapted weight passes there through an operation
that is followed here, and a use that is recorded here as merged gets the merged weight there.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal

from lora_jax.transform import jaxprs, views
from lora_jax.transform.tracked import (
    ADDED,
    DATA,
    TraceValue,
    Tracked,
    cut,
    parts,
    repeated,
    resized,
    untracked,
)


@dataclasses.dataclass(frozen=True)
class ObservedUse:
    """One use: its kind, the original axes that were contracted, and those left free."""

    kind: str
    contracted: frozenset[int] = frozenset()
    free: frozenset[int] = frozenset()
    merges: str | None = None
    activations: bool = False
    constant: bool = False
    final: bool = False


class UseRecorder:
    """Follows parameters through a jaxpr and records every use."""

    def __init__(self, final: set[int]):
        self.uses: dict[str, list[ObservedUse]] = {}
        self._final = final
        self._opaque: list[str] = []  # enclosing operations, inside which weights are merged

    def run(self, jaxpr: Jaxpr, inputs: Sequence[TraceValue]) -> list[TraceValue]:
        env: dict[Any, TraceValue] = dict(zip(jaxpr.invars, inputs, strict=True))

        def read(var: Any) -> TraceValue:
            return None if isinstance(var, Literal) else env.get(var)

        for eqn in jaxpr.eqns:
            operands = [read(var) for var in eqn.invars]
            outputs: list[TraceValue] = [None] * len(eqn.outvars)
            if any(isinstance(each, Tracked) for each in operands):
                outputs = self._step(eqn, operands) or outputs
            data = DATA in operands
            for var, out in zip(eqn.outvars, outputs, strict=True):
                env[var] = out if isinstance(out, Tracked) else untracked(var, data)
        return [read(var) for var in jaxpr.outvars]

    def _step(self, eqn: JaxprEqn, operands: list[TraceValue]) -> list[TraceValue] | None:
        """The results of an equation, or None if no parameter is followed to them."""
        name = eqn.primitive.name
        if body := jaxprs.call(eqn):
            return self.run(body[0], operands)
        if name in jaxprs.REMAT:
            outputs = self.run(jaxprs.inner(eqn.params["jaxpr"])[0], operands)
            return [self._merge(out, name) for out in outputs]
        match name:
            case "scan":
                return self._scan(eqn, operands)
            case "while":
                return self._while(eqn, operands)
            case "cond":
                return self._cond(eqn, operands)
            case "optimization_barrier":
                return operands
            case "dot_general":
                return self._dot(eqn, operands)
            case "conv_general_dilated":
                return self._convolution(eqn, operands)
            case "ragged_dot_general" if isinstance(operands[1], Tracked):
                return self._ragged_dot(eqn, operands[0], operands[1])
        first, *rest = operands
        if isinstance(first, Tracked) and not any(isinstance(each, Tracked) for each in rest):
            if after := self._follow(eqn, first):
                return [after]
            if found := views.as_parts(eqn, first.view.shape):
                return parts(first, found)
            if self._lookup(eqn, first):
                return None
            if name == "broadcast_in_dim":
                self.record_other(first, name)
                return [repeated(eqn, first)]
        outputs = self._inside(eqn, operands) or self._same_axes(eqn, operands)
        for operand in operands:
            self.record_other(operand, name) if DATA in operands else self._mixed(operand, name)
        return outputs

    def _mixed(self, tracked: TraceValue, name: str) -> None:
        """Record that a parameter becomes part of a value made of parameters alone.

        The function may multiply by that value, as after `concatenate`: the last two axes of the
        parameter are therefore taken as its matrix.
        """
        if not isinstance(tracked, Tracked):
            return
        real = [
            dim
            for dim, axis in enumerate(tracked.view.axes)
            if any(atom.size > 1 and atom.axis != ADDED for atom in axis)
        ]
        if len(real) > 1:
            self._record(tracked, "mixed", real[-2:-1], real[-1:], merges=name)
        else:
            self.record_other(tracked, name)

    def _inside(self, eqn: JaxprEqn, operands: list[TraceValue]) -> list[TraceValue] | None:
        """Look for products inside an operation that gets merged weights."""
        outputs = None
        self._opaque.append(eqn.primitive.name)
        for body, places in jaxprs.bodies(eqn):
            ends = self.run(body, list(map(resized, [operands[i] for i in places], body.invars)))
            if len(ends) == len(eqn.outvars):
                outputs = list(map(resized, ends, eqn.outvars))
        self._opaque.pop()
        return outputs and [self._merge(out, eqn.primitive.name) for out in outputs]

    def _same_axes(self, eqn: JaxprEqn, operands: list[TraceValue]) -> list[TraceValue] | None:
        """Follow a merged weight that meets no activations: scaled, masked, rounded or noisy."""
        pairs = list(zip(eqn.invars, operands, strict=True))
        if eqn.primitive.name == "select_n":  # the result is one of the cases, not the selector
            pairs = pairs[1:]
        tracked = [each for _, each in pairs if isinstance(each, Tracked)]
        alike = len({(each.path, each.view) for each in tracked}) == 1
        if (
            not alike
            or len(eqn.outvars) != 1
            or any(each is DATA and jaxprs.shape(v) for v, each in pairs)
        ):
            return None
        after = resized(tracked[0], eqn.outvars[0])
        return [self._as_merged(after, eqn.primitive.name)]

    def _follow(self, eqn: JaxprEqn, tracked: Tracked) -> Tracked | None:
        """The parameter after an operation that an adapted weight passes through."""
        view = tracked.view
        if jaxprs.is_cast(eqn):
            return tracked
        if (after := views.follow(eqn, view)) is not None:
            return dataclasses.replace(tracked, view=after)
        if (axes := views.sliced_axes(eqn, view.shape)) is not None:
            for axis in axes:
                tracked = cut(tracked, axis, jaxprs.shape(eqn.outvars[0])[axis])
            return tracked
        found = views.as_lookup(eqn, view.shape)
        if found and len(jaxprs.shape(eqn.invars[1])) == 1 and views.fill_value(eqn) is None:
            row = view.replace(found.axis, ()) if found.kept else view.drop(found.axis)
            return dataclasses.replace(tracked, view=row)
        return None

    def _lookup(self, eqn: JaxprEqn, tracked: Tracked) -> bool:
        found = views.as_lookup(eqn, tracked.view.shape)
        if found is None:
            return False
        rest = tuple(dim for dim in range(len(tracked.view.axes)) if dim != found.axis)
        self._record(tracked, "lookup", (found.axis,), rest)
        return True

    def _dot(self, eqn: JaxprEqn, operands: list[TraceValue]) -> None:
        contract, batch = eqn.params["dimension_numbers"]
        for side, tracked in enumerate(operands):
            if isinstance(tracked, Tracked):
                used = (*contract[side], *batch[side])
                free = tuple(d for d in range(len(tracked.view.axes)) if d not in used)
                other = isinstance(operands[1 - side], Tracked)
                self._record(
                    tracked,
                    "product",
                    contract[side],
                    free,
                    merges="product of weights" if other and side == 0 else jaxprs.unusual(eqn),
                    activations=not other,
                    constant=operands[1 - side] is not DATA,
                    final=id(eqn) in self._final,
                )

    def _convolution(self, eqn: JaxprEqn, operands: list[TraceValue]) -> None:
        """Record a convolution: either side may be the weight; its shared axes are its inputs."""
        numbers = eqn.params["dimension_numbers"]
        for tracked, spec in zip(operands, (numbers.lhs_spec, numbers.rhs_spec), strict=True):
            if isinstance(tracked, Tracked):
                self._record(tracked, "convolution", spec[1:], spec[:1], merges="convolution")

    def _ragged_dot(self, eqn: JaxprEqn, left: TraceValue, tracked: Tracked) -> None:
        numbers = eqn.params["ragged_dot_dimension_numbers"]
        (_, contract), (_, batch) = numbers.dot_dimension_numbers
        used = (*contract, *batch, *numbers.rhs_group_dimensions)
        free = tuple(d for d in range(len(tracked.view.axes)) if d not in used)
        name, alone = "ragged_dot", not isinstance(left, Tracked)
        self._record(tracked, "product", contract, free, merges=name, activations=alone)
        self.record_other(left, name)

    def _cond(self, eqn: JaxprEqn, operands: list[TraceValue]) -> list[TraceValue]:
        merging = ["cond"] if jaxprs.by_platform(eqn) else []
        self._opaque += merging
        outputs = [self.run(branch, operands[1:]) for branch, _ in jaxprs.bodies(eqn)]
        del self._opaque[len(self._opaque) - len(merging) :]
        return [self._joined(list(each)) for each in zip(*outputs, strict=True)]

    def _scan(self, eqn: JaxprEqn, operands: list[TraceValue]) -> list[TraceValue]:
        consts, carry = jaxprs.scan_sizes(eqn)
        body, _ = jaxprs.inner(eqn.params["jaxpr"])
        rows: list[TraceValue] = [
            dataclasses.replace(each, view=each.view.drop(0)) if isinstance(each, Tracked) else each
            for each in operands[consts + carry :]
        ]
        kept = self._carried(body, operands[: consts + carry], rows, consts, "scan carry")
        outputs = self.run(body, [*operands[:consts], *kept, *rows])
        for out in outputs[carry:]:
            self.record_other(out, "scan output")
        return [*kept, *[None] * (len(eqn.outvars) - carry)]

    def _while(self, eqn: JaxprEqn, operands: list[TraceValue]) -> list[TraceValue]:
        test, _ = jaxprs.inner(eqn.params["cond_jaxpr"])
        body, _ = jaxprs.inner(eqn.params["body_jaxpr"])
        first, second = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        rest = operands[first:]
        kept = self._carried(body, rest, [], second, "while carry")
        self.run(test, [*operands[:first], *kept])
        self.run(body, [*rest[:second], *kept])
        return kept

    def _carried(
        self, body: Jaxpr, before: list[TraceValue], rows: list[TraceValue], consts: int, name: str
    ) -> list[TraceValue]:
        """What a loop carries in all iterations; parameters that change are merged before the loop.

        A value that becomes data in any iteration counts as data, no longer as a parameter.
        """
        fixed, kept = before[:consts], before[consts:]
        same = jaxprs.unchanged(body, consts, len(kept))
        for i, stays in enumerate(same):
            if not stays:
                self._mixed(kept[i], name)
                kept[i] = self._as_merged(kept[i], name)
        while not all(stays or each is DATA for stays, each in zip(same, kept, strict=True)):
            ends = UseRecorder(self._final).run(body, [*fixed, *kept, *rows])
            data = [i for i, each in enumerate(kept) if ends[i] is DATA and each is not DATA]
            if not data:
                break
            for i in data:
                kept[i] = DATA
        return kept

    def _as_merged(self, operand: TraceValue, name: str) -> TraceValue:
        if not isinstance(operand, Tracked):
            return operand
        return dataclasses.replace(operand, merged=operand.merged or name)

    def _merge(self, operand: TraceValue, name: str) -> TraceValue:
        """Record that an operation gets the merged weight, and follow its result."""
        self.record_other(operand, name)
        return self._as_merged(operand, name)

    def _joined(self, ends: list[TraceValue]) -> TraceValue:
        """What a `cond` returns in one place, from what each branch returns there."""
        for end in ends:
            self._mixed(end, "cond")
        first = ends[0]
        if isinstance(first, Tracked) and all(
            isinstance(end, Tracked) and (end.path, end.view) == (first.path, first.view)
            for end in ends
        ):
            return self._merge(first, "cond")
        return None

    def record_other(self, tracked: TraceValue, name: str) -> None:
        """Record a use that says nothing about the axes."""
        if isinstance(tracked, Tracked):
            self._record(tracked, name, (), (), merges=name)

    def _record(
        self,
        tracked: Tracked,
        kind: str,
        contract: Sequence[int],
        free: Sequence[int],
        merges: str | None = None,
        **facts: bool,
    ) -> None:
        inputs, outputs = (
            frozenset(atom.axis for atom in tracked.view.pick(tuple(dims))) - {ADDED}
            for dims in (contract, free)
        )
        merges = tracked.merged or merges
        if tracked.cut & (inputs | outputs):
            merges = merges or "slice"
        if self._opaque:
            merges = self._opaque[0]
        use = ObservedUse(kind, inputs, outputs, merges, **facts)
        self.uses.setdefault(tracked.path, []).append(use)
