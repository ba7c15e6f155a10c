"""Following parameters through a jaxpr, computing nothing: every use that is met is written down.

The counterpart of `evaluate`, over the same rules: what it follows here, a weight passes through
there; what it writes down as merged, gets the merged weight there.
"""

import dataclasses
from collections.abc import Sequence
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
    merged: str | None = None
    """The operation that got the merged weight, of which this is the result."""


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
        activations = {var for var, tracked in env.items() if tracked is None}

        def read(var: Any) -> Tracked | None:
            return None if isinstance(var, Literal) else env.get(var)

        for eqn in jaxpr.eqns:
            operands = [read(var) for var in eqn.invars]
            beside = not activations.isdisjoint(v for v in eqn.invars if isinstance(v, Var))
            if beside:
                activations.update(eqn.outvars)
            if any(operands):
                outputs = self._step(eqn, operands, beside)
                env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _step(
        self, eqn: JaxprEqn, operands: list[Tracked | None], beside: bool
    ) -> list[Tracked | None]:
        """What an equation's results are; `beside` tells whether activations go in too."""
        nothing: list[Tracked | None] = [None] * len(eqn.outvars)
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
            case "cond" if not jaxprs.by_platform(eqn):
                branches = [jaxprs.inner(branch)[0] for branch in eqn.params["branches"]]
                outputs = [self.run(branch, operands[1:]) for branch in branches]
                return [self._joined(list(each)) for each in zip(*outputs, strict=True)]
            case "optimization_barrier":
                return operands
            case "dot_general":
                self._dot(eqn, operands)
                return nothing
        first = operands[0]
        if first and not any(operands[1:]):
            if after := self._follow(eqn, first):
                return [after]
            if self._lookup(eqn, first):
                return nothing
        if name == "conv_general_dilated" and operands[1]:
            out = eqn.params["dimension_numbers"].rhs_spec[0]
            inputs = tuple(dim for dim in range(len(operands[1].view.axes)) if dim != out)
            self._record(operands[1], "convolution", inputs, (out,), merges="convolution")
            self.other(first, name)
            return nothing
        if name == "ragged_dot_general" and operands[1]:
            self._ragged_dot(eqn, operands[0], operands[1])
            return nothing
        outputs = self._inside(eqn, operands) or self._same_axes(eqn, operands) or nothing
        mixes = not beside and name != "broadcast_in_dim"
        for operand in operands:
            self._mixed(operand, name) if mixes else self.other(operand, name)
        return outputs

    def _mixed(self, tracked: Tracked | None, name: str) -> None:
        """Write down that a parameter becomes part of a value made of parameters alone.

        That value may be multiplied by, as after `concatenate`: the last two axes of the parameter
        are then taken for its matrix.
        """
        axes = tracked.view.axes if tracked else ()
        real = [dim for dim, axis in enumerate(axes) if any(atom.size > 1 for atom in axis)]
        if tracked and len(real) > 1:
            self._record(tracked, "mixed", real[-2:-1], real[-1:], merges=name)
        else:
            self.other(tracked, name)

    def _inside(self, eqn: JaxprEqn, operands: list[Tracked | None]) -> list[Tracked | None] | None:
        """Look into an operation that gets merged weights, for the products that it does."""
        outputs = None
        self._opaque.append(eqn.primitive.name)
        for body in jaxprs.bodies(eqn):
            ends = self.run(body, list(map(_resized, operands, body.invars)))
            if len(ends) == len(eqn.outvars):
                outputs = list(map(_resized, ends, eqn.outvars))
        self._opaque.pop()
        return outputs and [self._merge(out, eqn.primitive.name) for out in outputs]

    def _same_axes(
        self, eqn: JaxprEqn, operands: list[Tracked | None]
    ) -> list[Tracked | None] | None:
        """Follow the merged weight where nothing but numbers meets it: scaled, masked, rounded."""
        tracked = [each for each in operands if each]
        others = [v for v, each in zip(eqn.invars, operands, strict=True) if not each]
        if len(tracked) != 1 or len(eqn.outvars) != 1 or any(map(jaxprs.shape, others)):
            return None
        after = _resized(tracked[0], eqn.outvars[0])
        return [after and dataclasses.replace(after, merged=after.merged or eqn.primitive.name)]

    def _follow(self, eqn: JaxprEqn, tracked: Tracked) -> Tracked | None:
        """The parameter after an operation that an adapted weight passes through."""
        view = tracked.view
        if eqn.primitive.name == "convert_element_type":
            return tracked if jnp.issubdtype(eqn.params["new_dtype"], jnp.floating) else None
        if (after := views.follow(eqn, view)) is not None:
            return dataclasses.replace(tracked, view=after)
        if (axes := views.sliced_axes(eqn, view.shape)) is not None:
            for axis in axes:
                tracked = _cut(tracked, axis, jaxprs.shape(eqn.outvars[0])[axis])
            return tracked
        found = views.lookup(eqn, view.shape)
        if found and len(jaxprs.shape(eqn.invars[1])) == 1 and views.fill(eqn) is None:
            row = view.replace(found.axis, ()) if found.kept else view.drop(found.axis)
            return dataclasses.replace(tracked, view=row)
        return None

    def _lookup(self, eqn: JaxprEqn, tracked: Tracked) -> bool:
        found = views.lookup(eqn, tracked.view.shape)
        if found is None:
            return False
        rest = tuple(dim for dim in range(len(tracked.view.axes)) if dim != found.axis)
        self._record(tracked, "lookup", (found.axis,), rest)
        return True

    def _dot(self, eqn: JaxprEqn, operands: list[Tracked | None]) -> None:
        contract, batch = eqn.params["dimension_numbers"]
        for side, tracked in enumerate(operands):
            if tracked:
                used = (*contract[side], *batch[side])
                free = tuple(d for d in range(len(tracked.view.axes)) if d not in used)
                other = operands[1 - side]
                self._record(
                    tracked,
                    "product",
                    contract[side],
                    free,
                    merges="product of weights" if other and side == 0 else jaxprs.unusual(eqn),
                    activations=other is None,
                    final=id(eqn) in self._final,
                )

    def _ragged_dot(self, eqn: JaxprEqn, left: Tracked | None, tracked: Tracked) -> None:
        numbers = eqn.params["ragged_dot_dimension_numbers"]
        (_, contract), (_, batch) = numbers.dot_dimension_numbers
        used = (*contract, *batch, *numbers.rhs_group_dimensions)
        free = tuple(d for d in range(len(tracked.view.axes)) if d not in used)
        name = "ragged_dot"
        self._record(tracked, "product", contract, free, merges=name, activations=left is None)
        self.other(left, name)

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

    def _merge(self, tracked: Tracked | None, name: str) -> Tracked | None:
        """Write down that an operation gets the merged weight, and follow that."""
        self.other(tracked, name)
        return tracked and dataclasses.replace(tracked, merged=tracked.merged or name)

    def _joined(self, ends: list[Tracked | None]) -> Tracked | None:
        """What the branches of a `cond` return in the same place."""
        for end in ends:
            self._mixed(end, "cond")
        same = len({(end.path, end.view) if end else None for end in ends}) == 1
        return self._merge(ends[0], "cond") if same else None

    def other(self, tracked: Tracked | None, name: str) -> None:
        """Write down a use that says nothing about the axes."""
        if tracked:
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
        inputs = frozenset(atom.axis for atom in tracked.view.pick(tuple(contract)))
        outputs = frozenset(atom.axis for atom in tracked.view.pick(tuple(free)))
        merges = tracked.merged or merges
        if tracked.cut & (inputs | outputs):
            merges = merges or "slice"
        if self._opaque:
            merges = self._opaque[0]
        seen = Seen(kind, inputs, outputs, merges, **facts)
        self.seen.setdefault(tracked.path, []).append(seen)


def _cut(tracked: Tracked, axis: int, size: int) -> Tracked:
    """The parameter after a slice of one axis, which leaves a matrix whole or cuts it."""
    atoms = tracked.view.axes[axis]
    if size == 1 or not atoms:
        return dataclasses.replace(tracked, view=tracked.view.replace(axis, ()))
    view = tracked.view.replace(axis, (Atom(atoms[0].axis, 1, size),))
    cut = tracked.cut | {atom.axis for atom in atoms}
    return dataclasses.replace(tracked, view=view, cut=cut)


def _resized(tracked: Tracked | None, var: Var) -> Tracked | None:
    """The parameter as an array of the same axes in other sizes: a shard, padded, gathered."""
    sizes = jaxprs.shape(var)
    if tracked is None or tracked.view.shape == sizes:
        return tracked
    if len(sizes) != len(tracked.view.axes) or any(len(a) != 1 for a in tracked.view.axes):
        return None
    atoms = tracked.view.pick(tuple(range(len(sizes))))
    axes = tuple((Atom(a.axis, a.stride, n),) for a, n in zip(atoms, sizes, strict=True))
    return dataclasses.replace(tracked, view=View(axes))
