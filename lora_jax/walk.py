"""Following parameters through a jaxpr, computing nothing: every use that is met is written down.

The counterpart of `evaluate`, over the same rules: what it follows here, a weight passes through
there; what it writes down as merged, gets the merged weight there.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from lora_jax import jaxprs, views
from lora_jax.views import Atom, View


@dataclasses.dataclass(frozen=True)
class Tracked:
    """A parameter on its way through the trace."""

    path: str
    view: View
    cut: frozenset[int] = frozenset()
    """Original axes of which only a range is left."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """One use: its kind, the original axes that were contracted and that were left free."""

    kind: str
    contracted: frozenset[int] = frozenset()
    free: frozenset[int] = frozenset()
    merges: str | None = None
    activations: bool = False
    final: bool = False


class Walk:
    """Follows parameters through a jaxpr and writes down every use."""

    def __init__(self, final: set[int]):
        self.seen: dict[str, list[Seen]] = {}
        self._final = final
        self._opaque: list[str] = []  # operations around, inside which weights arrive merged

    def run(self, jaxpr: Jaxpr, inputs: list[Tracked | None]) -> list[Tracked | None]:
        env: dict[Any, Tracked | None] = dict(zip(jaxpr.invars, inputs, strict=True))

        def read(var: Any) -> Tracked | None:
            return None if isinstance(var, Literal) else env.get(var)

        for eqn in jaxpr.eqns:
            operands = [read(var) for var in eqn.invars]
            if any(operands):
                env.update(zip(eqn.outvars, self._step(eqn, operands), strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _step(self, eqn: JaxprEqn, operands: list[Tracked | None]) -> list[Tracked | None]:
        nothing: list[Tracked | None] = [None] * len(eqn.outvars)
        name = eqn.primitive.name
        if body := jaxprs.call(eqn):
            return self.run(body[0], operands)
        if name in jaxprs.REMAT:
            self.run(jaxprs.inner(eqn.params["jaxpr"])[0], operands)
            return nothing
        match name:
            case "scan":
                return self._scan(eqn, operands)
            case "while":
                return self._while(eqn, operands)
            case "cond":
                for branch in eqn.params["branches"]:
                    self.run(jaxprs.inner(branch)[0], operands[1:])
                return nothing
            case "dot_general":
                self._dot(eqn, operands)
                return nothing
        first = operands[0]
        if first and not any(operands[1:]):
            if after := self._follow(eqn, first):
                return [after]
            if name == "gather" and self._lookup(eqn, first):
                return nothing
        if name == "conv_general_dilated" and operands[1]:
            out = eqn.params["dimension_numbers"].rhs_spec[0]
            inputs = tuple(dim for dim in range(len(operands[1].view.axes)) if dim != out)
            self._record(operands[1], "convolution", inputs, (out,), merges="convolution")
            self.other(first, name)
            return nothing
        if any(operands) and (inside := jaxprs.bodies(eqn)):
            self._opaque.append(name)
            for body in inside:
                self.run(
                    body, [_localise(t, v) for t, v in zip(operands, body.invars, strict=True)]
                )
            self._opaque.pop()
        for operand in operands:
            self.other(operand, name)
        return nothing

    def _follow(self, eqn: JaxprEqn, tracked: Tracked) -> Tracked | None:
        """The parameter after an operation that an adapted weight passes through."""
        view = tracked.view
        if eqn.primitive.name == "convert_element_type":
            return tracked if jnp.issubdtype(eqn.params["new_dtype"], jnp.floating) else None
        if (after := views.follow(eqn, view)) is not None:
            return dataclasses.replace(tracked, view=after)
        axis = views.sliced_axis(eqn, view.shape)
        if axis is not None and view.axes[axis]:
            size = jaxprs.shape(eqn.outvars[0])[axis]
            if size == 1:
                return dataclasses.replace(tracked, view=view.replace(axis, ()))
            atom = Atom(view.axes[axis][0].axis, 1, size)
            cut = tracked.cut | {each.axis for each in view.axes[axis]}
            return Tracked(tracked.path, view.replace(axis, (atom,)), cut)
        axis = views.looked_up_axis(eqn, view.shape)
        if axis is not None and len(jaxprs.shape(eqn.invars[1])) == 1:
            return dataclasses.replace(tracked, view=view.drop(axis))
        return None

    def _lookup(self, eqn: JaxprEqn, tracked: Tracked) -> bool:
        axis = views.looked_up_axis(eqn, tracked.view.shape)
        if axis is None:
            return False
        rest = tuple(dim for dim in range(len(tracked.view.axes)) if dim != axis)
        self._record(tracked, "lookup", (axis,), rest)
        return True

    def _dot(self, eqn: JaxprEqn, operands: list[Tracked | None]) -> None:
        contract, batch = eqn.params["dimension_numbers"]
        for side, tracked in enumerate(operands):
            if tracked:
                used = (*contract[side], *batch[side])
                free = tuple(d for d in range(len(tracked.view.axes)) if d not in used)
                self._record(
                    tracked,
                    "product",
                    contract[side],
                    free,
                    activations=operands[1 - side] is None,
                    final=id(eqn) in self._final,
                )

    def _scan(self, eqn: JaxprEqn, operands: list[Tracked | None]) -> list[Tracked | None]:
        consts, carry = jaxprs.scan_sizes(eqn)
        body, _ = jaxprs.inner(eqn.params["jaxpr"])
        kept = self._carried(body, operands, consts, carry, "scan carry")
        rows: list[Tracked | None] = []
        for each in operands[consts + carry :]:
            rows.append(each and dataclasses.replace(each, view=each.view.drop(0)))
        outputs = self.run(body, [*operands[:consts], *kept, *rows])
        for out in outputs[carry:]:
            self.other(out, "scan output")
        return [*kept, *[None] * (len(eqn.outvars) - carry)]

    def _while(self, eqn: JaxprEqn, operands: list[Tracked | None]) -> list[Tracked | None]:
        test, _ = jaxprs.inner(eqn.params["cond_jaxpr"])
        body, _ = jaxprs.inner(eqn.params["body_jaxpr"])
        first, second = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        body_operands = operands[first:]
        carry = len(body_operands) - second
        kept = self._carried(body, body_operands, second, carry, "while carry")
        self.run(test, [*operands[:first], *kept])
        self.run(body, [*body_operands[:second], *kept])
        return kept

    def _carried(
        self, body: Jaxpr, operands: list[Tracked | None], consts: int, carry: int, name: str
    ) -> list[Tracked | None]:
        """The carried parameters that stay what they are; the others are merged before the loop."""
        kept: list[Tracked | None] = []
        same = jaxprs.unchanged(body, consts, carry)
        for stays, tracked in zip(same, operands[consts : consts + carry], strict=True):
            if not stays:
                self.other(tracked, name)
            kept.append(tracked if stays else None)
        return kept

    def other(self, tracked: Tracked | None, name: str) -> None:
        """Write down a use that says nothing about the axes."""
        if tracked:
            self._record(tracked, name, (), (), merges=name)

    def _record(
        self,
        tracked: Tracked,
        kind: str,
        contract: tuple[int, ...],
        free: tuple[int, ...],
        merges: str | None = None,
        **facts: bool,
    ) -> None:
        inputs = frozenset(atom.axis for atom in tracked.view.pick(contract))
        outputs = frozenset(atom.axis for atom in tracked.view.pick(free))
        if tracked.cut & (inputs | outputs):
            merges = merges or "slice"
        if self._opaque:
            merges = self._opaque[0]
        seen = Seen(kind, inputs, outputs, merges, **facts)
        self.seen.setdefault(tracked.path, []).append(seen)


def _localise(tracked: Tracked | None, var: Var) -> Tracked | None:
    """The parameter inside an operation that may see only a shard of it, axis by axis."""
    if tracked is None or any(len(axis) != 1 for axis in tracked.view.axes):
        return None
    atoms = [axis[0] for axis in tracked.view.axes]
    sizes = jaxprs.shape(var)
    if len(sizes) != len(atoms):
        return None
    axes = tuple((Atom(a.axis, a.stride, n),) for a, n in zip(atoms, sizes, strict=True))
    return dataclasses.replace(tracked, view=View(axes))


def final_products(jaxpr: Jaxpr, live: set[Any]) -> tuple[set[int], set[Any]]:
    """Products whose result reaches `live` through no other product, and the inputs that do.

    Loops are taken as the end of the search: what they return is not followed further back.
    """
    found: set[int] = set()
    live = {var for var in live if not isinstance(var, Literal)}
    for eqn in reversed(jaxpr.eqns):
        reached = [var in live for var in eqn.outvars]
        if not any(reached):
            continue
        if eqn.primitive.name in ("scan", "while", "cond"):
            continue
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            found.add(id(eqn))
        elif bodies := jaxprs.bodies(eqn):
            for body in bodies:
                ends = {v for v, hit in zip(body.outvars, reached, strict=True) if hit}
                inner, through = final_products(body, ends)
                found |= inner
                live |= {v for v, b in zip(eqn.invars, body.invars, strict=True) if b in through}
        else:
            live.update(var for var in eqn.invars if not isinstance(var, Literal))
    return found, live
