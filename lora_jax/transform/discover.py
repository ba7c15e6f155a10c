"""How a function uses each of its parameters: multiplied by, looked up in, or only added.

`discover` traces the function once and follows every parameter through the trace, without computing
anything. Products show which axes of a weight are in and out axes, and which are stacked (one
matrix each). All other uses show where an adapted weight would have to be merged.

The walk has the rules of `evaluate`: an adapted weight passes there through an operation that is
followed here, and a use that is recorded here as merged gets the merged weight there.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax
from jax.extend.core import JaxprEqn, Var

from lora_jax.base import Kernel, Use, Uses, WeightUse
from lora_jax.files.arrays import is_key
from lora_jax.partition import (
    flatten,
    is_array,
    naming_collections,
    select_paths,
    split_arrays,
)
from lora_jax.transform import jaxprs, origins, views
from lora_jax.transform.convolutions import has_rule
from lora_jax.transform.origins import Origin, Origins
from lora_jax.transform.views import Atom, Axis, Lookup, Parts, View

ADDED = -1
"""Marks an axis made by repetition, which has no original axis."""


@dataclasses.dataclass(frozen=True)
class Tracked:
    """A parameter that is followed through the trace."""

    path: str
    view: View
    shape: tuple[int, ...]
    """The parameter's own shape."""
    cut: frozenset[int] = frozenset()
    """Original axes of which only a range is left."""
    merged: str | None = None
    """The operation that got the merged weight, if this comes from its result."""
    scanned: frozenset[int] = frozenset()
    """Original axes along which a `scan` takes it apart."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Activations: values that depend on the function's inputs other than random keys."""

    origins: Origins = ()


@dataclasses.dataclass(frozen=True)
class Made:
    """A value made of parameters alone, which are not followed to it."""

    origins: Origins = ()


class Multiplied(Made):
    """Made by a product of two parameters: activations meet them together, in one of two orders."""


TraceValue = Tracked | Data | Made | None
"""None for a value that depends on nothing, on random keys, or on parameters it shows no more."""


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
    cut: frozenset[int] = frozenset()
    """The original axes of which only a range is left."""
    scanned: frozenset[int] = frozenset()
    """The original axes along which a `scan` takes it apart."""
    tokens: bool = False
    """Whether it is a lookup by what the function's inputs say, and not by fixed positions."""
    kernel: Kernel | None = None


class Axes(NamedTuple):
    """Which axes of a weight form its matrix, where that is stated (see `adapt`)."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    stack: tuple[int, ...]

    def of(self, use: WeightUse) -> "Axes":
        """The axes counted from the front, each of which the weight has once.

        Raises:
          ValueError: it has others.
        """
        count = len(use.shape)
        stated = [axis for part in self for axis in part]
        if (
            not self.inputs
            or not self.outputs
            or not all(-count <= axis < count for axis in stated)
        ):
            raise ValueError(
                f"axes of '{use.path}': {tuple(self)} must name input and output axes of an array "
                f"of shape {use.shape}"
            )
        inputs, outputs, stack = ([axis % count for axis in part] for part in self)
        stack = stack or [axis for axis in range(count) if axis not in (*inputs, *outputs)]
        if sorted((*inputs, *outputs, *stack)) != list(range(count)):
            raise ValueError(
                f"axes of '{use.path}': {tuple(self)} must name each of its {count} axes once, in "
                "inputs, outputs or stack"
            )
        return Axes(*(tuple(sorted(part)) for part in (inputs, outputs, stack)))


def discover(forward: Callable[..., Any], params: Any, /, *args: Any, **kwargs: Any) -> Uses:
    """How `forward(params, *args, **kwargs)` uses each array of `params`.

    Args:
      forward: any JAX function of a parameter pytree.
      params: the parameters, or their `jax.ShapeDtypeStruct`s.
      *args: an example of its inputs (only shapes and dtypes matter).
      **kwargs: further inputs; values that are not arrays are passed on as they are.

    Returns:
      `{path: WeightUse}`; print it for a table of what can be adapted, and what merges and why.
    """
    return uses_of(forward, params, args, kwargs)


def uses_of(
    forward: Callable[..., Any],
    params: Any,
    args: Any,
    kwargs: Any,
    axes: Mapping[str, Axes] = types.MappingProxyType({}),
) -> Uses:
    """As `discover`, with the axes that are stated for the weights that patterns select."""
    leaves, treedef = flatten(params)
    arrays = {path: leaf for path, leaf in leaves.items() if is_array(leaf)}
    inputs, rebuild = split_arrays((args, kwargs))

    def flat(weights: list[Any], values: list[Any]) -> Any:
        filled = {**leaves, **dict(zip(arrays, weights, strict=True))}
        some_args, some_kwargs = rebuild(values)
        return forward(treedef.unflatten(filled.values()), *some_args, **some_kwargs)

    with naming_collections(forward, params):
        jaxpr, consts, _ = jaxprs.trace(flat, list(arrays.values()), inputs)
    recorder = UseRecorder(jaxprs.final_products(jaxpr, jaxpr.outvars)[0])
    tracked = [
        Tracked(path, View.of(leaf.shape), tuple(leaf.shape)) for path, leaf in arrays.items()
    ]
    given = [_untracked(var, data=True) for var in jaxpr.invars[len(tracked) :]]
    for out in recorder.run(jaxpr, consts, [*tracked, *given]):
        recorder.record_other(out, "returned")
    stated = {
        path: each
        for pattern, each in axes.items()
        for path in select_paths([pattern], arrays, "weight")
    }
    uses = {
        path: _conclude(path, leaf, recorder.of(path), stated.get(path))
        for path, leaf in arrays.items()
    }
    read = {p for p, each in recorder.uses.items() if any(use.tokens for use in each)}
    return Uses(_mark_output_embeddings(uses, read))


def _conclude(path: str, leaf: Any, observed: list[ObservedUse], stated: Axes | None) -> WeightUse:
    """Combine all uses of a parameter; the use that ranks first decides its axes.

    Mixed uses rank last. Then uses of more axes rank higher, as one of fewer axes may be of one
    row; then uses that merge nothing, where there is more to gain; then lookups before products, as
    for a tied table.
    """
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
    use = WeightUse(path, tuple(leaf.shape), dtype)
    shaped = [each for each in observed if each.contracted | each.free]
    order = ("lookup", "product", "convolution", "mixed")
    main = min(
        shaped,
        key=lambda each: (
            each.kind == "mixed",
            -len(each.contracted | each.free),
            each.merges is not None,
            order.index(each.kind),
        ),
        default=None,
    )
    if main:
        inputs = tuple(sorted(main.contracted))
        outputs = tuple(sorted(main.free - main.contracted))
        stack = tuple(a for a in range(len(use.shape)) if a not in (*inputs, *outputs))
        use = dataclasses.replace(use, stack=stack, inputs=inputs, outputs=outputs)
    if stated:
        use = dataclasses.replace(use, **stated.of(use)._asdict())
    kinds = [_kind(each, use) for each in observed]
    return dataclasses.replace(
        use,
        uses=tuple(dict.fromkeys(kinds)),
        activations=any(each.activations for each in observed),
        constant_inputs=any(each.constant for each in observed),
        final=any(each.final for each in observed),
    )


def _kind(observed: ObservedUse, use: WeightUse) -> Use:
    """The kind of a use, given the axes that were chosen for the parameter."""
    if observed.kind not in ("product", "lookup", "convolution"):
        kind = str(observed.merges) if observed.kind == "mixed" else observed.kind
        return Use(kind, observed.merges)
    axes = {*use.inputs, *use.outputs}
    cut = observed.cut & axes
    merges = observed.merges or ("scan" if observed.scanned & axes else None)
    contracted, free = observed.contracted, observed.free
    if observed.kind in ("product", "lookup"):  # one x for all matrices of a stack
        free = free - {*use.stack}
    if contracted | free | cut == axes:  # an axis of which one index is left is in neither
        if contracted <= {*use.inputs} and free <= {*use.outputs}:
            kernel = None if cut else observed.kernel
            return Use(observed.kind, merges, bool(cut), kernel)
        if contracted <= {*use.outputs} and free <= {*use.inputs} and observed.kind == "product":
            return Use("transposed product", merges, bool(cut))
    return Use(observed.kind, merges or "other axes", bool(cut))


def _mark_output_embeddings(uses: dict[str, WeightUse], read: Set[str]) -> dict[str, WeightUse]:
    """Mark tied tables, and final products onto the rows of the token table.

    That is the longest table whose rows the function's inputs choose: positions mostly do not come
    from inputs, and are fewer than tokens where they do.

    Args:
      read: the paths of these tables.
    """
    tokens = max((uses[path].matrix for path in read), default=None)
    marked = {}
    for path, use in uses.items():
        kinds = {each.kind for each in use.uses}
        tied = "lookup" in kinds and len(kinds) > 1
        head = use.final and use.matrix[::-1] == tokens
        marked[path] = dataclasses.replace(use, output_embedding=tied or head)
    return marked


class UseRecorder(jaxprs.Walk):
    """Follows parameters through a jaxpr and records every use."""

    def __init__(self, final: set[int]):
        self.uses: dict[str, list[ObservedUse]] = {}
        self._final = final
        # Axes that turn out to be stacked, and the inputs and outputs of values made of weights.
        self._stacks, self._inputs, self._outputs = set[Origin](), set[Origin](), set[Origin]()
        self._opaque: list[str] = []  # enclosing operations, inside which weights are merged

    def constant(self, atom: Any, value: Any) -> TraceValue:
        return None

    def of(self, path: str) -> list[ObservedUse]:
        """All uses of a parameter, without the output axes that turned out to be stacked.

        What is made of several parameters shows at its product with activations, or at a lookup,
        which of their axes are which. An axis that is an input of one and an output of the other,
        as in a tied table, shows nothing.
        """
        stack, inputs, outputs = (
            frozenset(axis for other, axis in found if other == path)
            for found in (self._stacks, self._inputs, self._outputs)
        )
        inputs, outputs = inputs - outputs, outputs - inputs
        found = []
        for each in self.uses.get(path, []):
            contracted, free = each.contracted, each.free - stack or each.free
            if each.kind == "mixed":
                # Only one side may be shown, as for a range of a table's rows.
                free = outputs or free - inputs - stack or contracted - inputs - stack
                contracted = inputs or contracted - free - stack or each.free - free - stack
                free = free - contracted - stack
                if not (contracted and free):
                    contracted = free = frozenset()
            found.append(dataclasses.replace(each, contracted=contracted, free=free))
        return found

    def step(self, eqn: JaxprEqn, operands: list[TraceValue]) -> list[TraceValue]:
        outputs: list[TraceValue] | None = None
        if any(isinstance(each, Tracked) for each in operands):
            outputs = super().step(eqn, operands)
        elif any(isinstance(each, Data | Made) and each.origins for each in operands):
            outputs = self._unfollowed(eqn, operands)
        data = _any_data(operands)
        return [
            _untracked(var, data)
            if out is None
            else Data(out.origins)
            if data and isinstance(out, Made)
            else out
            for var, out in zip(eqn.outvars, outputs or [None] * len(eqn.outvars), strict=True)
        ]

    def _unfollowed(self, eqn: JaxprEqn, operands: list[TraceValue]) -> list[TraceValue] | None:
        """The origins after an operation in which no parameter that is followed takes part."""
        if body := jaxprs.any_call(eqn):
            return self.run(*body, operands)
        if eqn.primitive.name == "dot_general":
            return self._dot(eqn, operands)
        table = operands[0]
        found = views.as_lookup(eqn, jaxprs.shape(eqn.invars[0])) if _origins(table) else None
        if found and isinstance(table, Made):
            return [self._lookup(eqn, table, operands[1], found)]
        return _after(eqn, operands)

    def operation(self, eqn: JaxprEqn, operands: list[TraceValue]) -> list[TraceValue] | None:
        """The results of an equation, or None if no parameter is followed to them."""
        name = eqn.primitive.name
        match name:
            case "optimization_barrier":
                return operands
            case "dot_general":
                return self._dot(eqn, operands)
            case "conv_general_dilated":
                return self._convolution(eqn, operands)
            case "ragged_dot_general" if isinstance(operands[1], Tracked):
                return self._ragged_dot(eqn, operands[0], operands[1])
            case _ if name in jaxprs.REMAT:
                outputs = self.run(*jaxprs.inner(eqn.params["jaxpr"]), operands)
                return [self._merge(out, name) for out in outputs]
        first, *rest = operands
        if isinstance(first, Tracked) and not any(isinstance(each, Tracked) for each in rest):
            if after := self._follow(eqn, first):
                return [after]
            if found := views.as_parts(eqn, first.view.shape):
                return _parts(first, found)
            if found := views.as_lookup(eqn, first.view.shape):
                return [self._lookup(eqn, first, rest[0], found)]
            if name == "broadcast_in_dim":
                self.record_other(first, name)
                return [_repeated(eqn, first)]
        outputs = self._inside(eqn, operands) or self._same_axes(eqn, operands)
        data = _any_data(operands)
        for operand in operands:
            self.record_other(operand, name) if data else self._mixed(operand, name)
        return outputs or _after(eqn, operands)

    def branch(self, eqn: JaxprEqn, operands: list[TraceValue]) -> list[TraceValue]:
        merging = ["cond"] if jaxprs.by_platform(eqn) else []
        self._opaque += merging
        branches = map(jaxprs.inner, eqn.params["branches"])
        outputs = [self.run(*body, operands[1:]) for body in branches]
        del self._opaque[len(self._opaque) - len(merging) :]
        return [self._joined(list(each)) for each in zip(*outputs, strict=True)]

    def scan(self, eqn: JaxprEqn, operands: list[TraceValue]) -> list[TraceValue]:
        body, fixed, carry, slices = jaxprs.Scan.of(eqn, operands)
        rows = list(map(_row, slices))
        kept = self._carried(body, fixed, list(carry), rows, "scan carry")
        outputs = self.run(*body, [*fixed, *kept, *rows])
        while (after := list(map(_joined_origins, kept, outputs))) != kept:
            kept = after  # what later iterations meet
            outputs = self.run(*body, [*fixed, *kept, *rows])
        for out in outputs[len(kept) :]:
            self.record_other(out, "scan output")
        return [*kept, *map(_rows, outputs[len(kept) :])]

    def loop(self, eqn: JaxprEqn, operands: list[TraceValue]) -> list[TraceValue]:
        test, asked, body, fixed, carry = jaxprs.While.of(eqn, operands)
        kept = self._carried(body, fixed, list(carry), [], "while carry")
        self.run(*test, [*asked, *kept])
        self.run(*body, [*fixed, *kept])
        return list(map(_anonymous, kept))

    def _carried(
        self,
        body: jaxprs.Body,
        fixed: list[TraceValue],
        kept: list[TraceValue],
        rows: list[TraceValue],
        name: str,
    ) -> list[TraceValue]:
        """What a loop carries in all iterations; parameters that change are merged before the loop.

        A value that becomes data in any iteration counts as data, no longer as a parameter. Data
        keep the origins that they have in the first iteration.
        """
        same = jaxprs.unchanged(body.jaxpr, len(fixed), len(kept))
        for i, stays in enumerate(same):
            if not stays:
                self._mixed(kept[i], name)
                value = None if isinstance(kept[i], Made) else kept[i]
                kept[i] = self._as_merged(value, name)
        while not all(s or isinstance(each, Data) for s, each in zip(same, kept, strict=True)):
            ends = UseRecorder(self._final).run(*body, [*fixed, *kept, *rows])
            data = [
                i
                for i, each in enumerate(kept)
                if isinstance(ends[i], Data) and not isinstance(each, Data)
            ]
            if not data:
                break
            for i in data:
                kept[i] = Data()
        return kept

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
            taken = [_anonymous(operands[i]) for i in places]
            given = list(map(_resized, taken, body.jaxpr.invars))
            ends = self.run(*body, given)
            if len(ends) == len(eqn.outvars):
                outputs = list(map(_resized, ends, eqn.outvars))
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
            or any(isinstance(each, Data) and jaxprs.shape(v) for v, each in pairs)
        ):
            return None
        after = _resized(tracked[0], eqn.outvars[0])
        return after and [self._as_merged(after, eqn.primitive.name)]

    def _follow(self, eqn: JaxprEqn, tracked: Tracked) -> Tracked | None:
        """The parameter after an operation that an adapted weight passes through."""
        view = tracked.view
        if jaxprs.is_cast(eqn):
            return tracked
        if (after := views.follow(eqn, view)) is not None:
            return dataclasses.replace(tracked, view=after)
        if (axes := views.sliced_axes(eqn, view.shape)) is not None:
            for axis in axes:
                tracked = _cut(tracked, axis, jaxprs.shape(eqn.outvars[0])[axis])
            return tracked
        found = views.as_lookup(eqn, view.shape)
        if found and len(jaxprs.shape(eqn.invars[1])) == 1 and views.fill_value(eqn) is None:
            row = view.replace(found.axis, ()) if found.kept else view.drop(found.axis)
            return dataclasses.replace(tracked, view=row)
        return None

    def _lookup(
        self, eqn: JaxprEqn, table: Tracked | Made, rows: TraceValue, found: Lookup
    ) -> TraceValue:
        by_inputs = isinstance(rows, Data)
        if isinstance(table, Made):
            self._show(table, (found.axis,), found.tables, matrix=by_inputs)
        else:
            rest = [d for d in range(len(table.view.axes)) if d not in (found.axis, *found.tables)]
            self._record(table, "lookup", (found.axis,), rest, tokens=by_inputs)
        for _, place in found.batch:
            self._stacks |= dict(enumerate(_origins(rows))).get(place, origins.NONE)
        return _result([table, rows])(origins.lookup(eqn, _origins(table), _origins(rows)))

    def _dot(self, eqn: JaxprEqn, operands: list[TraceValue]) -> list[TraceValue]:
        contract, batch = eqn.params["dimension_numbers"]
        known, kind = list(map(_origins, operands)), _result(operands)
        for side, tracked in enumerate(operands):
            shown: dict[int, Any] = {}
            if isinstance(tracked, Made):
                shown = dict(enumerate(known[side]))
                self._show(tracked, contract[side], batch[side], matrix=kind is Data)
            elif isinstance(tracked, Tracked):
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
                    constant=not isinstance(operands[1 - side], Data),
                    final=id(eqn) in self._final,
                )
                shown = {
                    dim: [atom for atom in axis if atom.axis != ADDED]
                    for dim, axis in enumerate(tracked.view.axes)
                }
            for mine, theirs in zip(batch[side], batch[1 - side], strict=True):
                if shown.get(mine):
                    self._stacks |= dict(enumerate(known[1 - side])).get(theirs, origins.NONE)
        if all(isinstance(each, Tracked | Made) for each in operands):
            kind = Multiplied
        return [kind(origins.product(eqn, known))]

    def _show(self, made: Made, inputs: Sequence[int], stack: Sequence[int], matrix: bool) -> None:
        """Note which axes of a value made of parameters are which."""
        for dim, axes in enumerate(made.origins):
            if dim in stack:
                self._stacks |= axes
            elif matrix and not isinstance(made, Multiplied):
                (self._inputs if dim in inputs else self._outputs).update(axes)

    def _convolution(self, eqn: JaxprEqn, operands: list[TraceValue]) -> None:
        """Record a convolution: either side may be the weight; its shared axes are its inputs."""
        numbers = eqn.params["dimension_numbers"]
        for side, spec in enumerate((numbers.lhs_spec, numbers.rhs_spec)):
            tracked, other = operands[side], operands[1 - side]
            if isinstance(tracked, Tracked):
                alone = side == 1 and not isinstance(other, Tracked) and has_rule(eqn)
                merges = None if alone else "convolution"
                kernel = _kernel(eqn, tracked) if side == 1 else None
                self._record(
                    tracked, "convolution", spec[1:], spec[:1], merges=merges, kernel=kernel
                )

    def _ragged_dot(self, eqn: JaxprEqn, left: TraceValue, tracked: Tracked) -> None:
        numbers = eqn.params["ragged_dot_dimension_numbers"]
        (_, contract), (_, batch) = numbers.dot_dimension_numbers
        used = (*contract, *batch, *numbers.rhs_group_dimensions)
        free = tuple(d for d in range(len(tracked.view.axes)) if d not in used)
        name, alone = "ragged_dot", not isinstance(left, Tracked)
        self._record(tracked, "product", contract, free, merges=name, activations=alone)
        self.record_other(left, name)

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
        **facts: Any,
    ) -> None:
        inputs, outputs = (
            frozenset(atom.axis for atom in tracked.view.pick(tuple(dims))) - {ADDED}
            for dims in (contract, free)
        )
        merges = tracked.merged or merges
        if self._opaque:
            merges = self._opaque[0]
        parts = {"cut": tracked.cut, "scanned": tracked.scanned}
        use = ObservedUse(kind, inputs, outputs, merges, **parts, **facts)
        self.uses.setdefault(tracked.path, []).append(use)


def _kernel(eqn: JaxprEqn, tracked: Tracked) -> Kernel | None:
    """What torch has of a convolution by a parameter whose axes are whole; it turns no kernels."""
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    dims = len(numbers.rhs_spec) - 2
    places = sorted(range(dims), key=lambda place: numbers.lhs_spec[2 + place])  # as of the input
    spec = (*numbers.rhs_spec[:2], *(numbers.rhs_spec[2 + place] for place in places))
    axes = [tracked.view.axes[dim] for dim in spec]
    whole = all(len(a) == 1 and a[0].size == tracked.shape[a[0].axis] for a in axes)
    plain = params["batch_group_count"] == 1 == max((*params["lhs_dilation"], 1))
    if tracked.merged or not (whole and plain):
        return None
    dilated = any(
        rate > 1 and tracked.view.shape[dim] > 1
        for rate, dim in zip(params["rhs_dilation"], numbers.rhs_spec[2:], strict=True)
    )
    shape = tuple(a[0].size for a in axes)
    return Kernel(tuple(a[0].axis for a in axes), shape, params["feature_group_count"], dilated)


def _untracked(var: Var, data: bool) -> TraceValue:
    """What represents a value that no parameter is followed to; random keys are not data."""
    return Data() if data and not is_key(var.aval) else None


def _after(eqn: JaxprEqn, operands: Sequence[TraceValue]) -> list[TraceValue]:
    """Activations after an operation: their axes, whatever biases and norms they meet, go on."""
    kind = _result(operands)
    given = [
        _origins(each) if kind is not Data or isinstance(each, Data) else () for each in operands
    ]
    return [
        None if is_key(var.aval) else kind(origins.after(eqn, given, jaxprs.shape(var)))
        for var in eqn.outvars
    ]


def _result(operands: Sequence[TraceValue]) -> type[Data | Made]:
    """What an operation gives of values of which it follows none as a parameter."""
    kinds = (Data, Multiplied)
    return next((k for k in kinds if any(isinstance(each, k) for each in operands)), Made)


def _any_data(operands: Sequence[TraceValue]) -> bool:
    return any(isinstance(each, Data) for each in operands)


def _anonymous(value: TraceValue) -> TraceValue:
    """The value without origins, where a loop or an operation may give its axes another place."""
    return Data() if isinstance(value, Data) else None if isinstance(value, Made) else value


def _row(value: TraceValue) -> TraceValue:
    """What a loop over the first axis of the value gets in each iteration."""
    if isinstance(value, Tracked):
        scanned = value.scanned | {atom.axis for atom in value.view.axes[0]}
        return dataclasses.replace(value, view=value.view.drop(0), scanned=scanned)
    return type(value)(value.origins[1:]) if isinstance(value, Data | Made) else value


def _rows(value: TraceValue) -> TraceValue:
    """What a loop stacks of a value, one for each iteration; None without origins."""
    known = isinstance(value, Data) and value.origins
    return Data((origins.NONE, *known)) if known else None


def _joined_origins(value: TraceValue, after: TraceValue) -> TraceValue:
    """What a loop carries, with the origins that it has after an iteration, too."""
    if not (isinstance(value, Data) and isinstance(after, Data) and after.origins):
        return value
    before = value.origins or (origins.NONE,) * len(after.origins)
    return Data(tuple(one | other for one, other in zip(before, after.origins, strict=True)))


def _origins(value: TraceValue) -> Origins:
    """Where the axes of a value come from: a product passes on those of its weight."""
    match value:
        case Tracked():
            return origins.of_weight(value.path, value.view, value.shape)
        case Data() | Made():
            return value.origins
    return ()


def _cut(tracked: Tracked, axis: int, size: int) -> Tracked:
    """The parameter after a slice of one axis; a range of more than one index counts as a cut."""
    atoms = tracked.view.axes[axis]
    part = (Atom(atoms[0].axis, 1, size),) if atoms and size > 1 else ()
    view = tracked.view.replace(axis, part)
    cut = tracked.cut | {atom.axis for atom in atoms}
    return dataclasses.replace(tracked, view=view, cut=cut)


def _parts(tracked: Tracked, found: Parts) -> list[TraceValue]:
    """The parameter in each window of an `unstack` or `split`, as after a slice of its own."""
    windows = [_cut(tracked, found.axis, size) for size in found.sizes]
    if found.kept:
        return list(windows)
    return [dataclasses.replace(each, view=each.view.drop(found.axis)) for each in windows]


def _resized(tracked: TraceValue, var: Var) -> TraceValue:
    """The parameter with the same axes in the sizes of `var`: a shard, padded, gathered."""
    sizes = jaxprs.shape(var)
    if not isinstance(tracked, Tracked) or tracked.view.shape == sizes:
        return tracked
    if len(sizes) != len(tracked.view.axes) or any(len(a) != 1 for a in tracked.view.axes):
        return None
    atoms = tracked.view.pick(tuple(range(len(sizes))))
    axes = tuple((Atom(a.axis, a.stride, n),) for a, n in zip(atoms, sizes, strict=True))
    return dataclasses.replace(tracked, view=View(axes))


def _repeated(eqn: JaxprEqn, tracked: Tracked) -> Tracked:
    """The merged parameter after a `broadcast_in_dim` that adds axes or repeats along some."""
    axes: list[Axis] = [(Atom(ADDED, 0, size),) if size > 1 else () for size in eqn.params["shape"]]
    for dim, axis in zip(eqn.params["broadcast_dimensions"], tracked.view.axes, strict=True):
        if any(atom.size > 1 for atom in axis):
            axes[dim] = axis
    merged = tracked.merged or eqn.primitive.name
    return dataclasses.replace(tracked, view=View(tuple(axes)), merged=merged)
