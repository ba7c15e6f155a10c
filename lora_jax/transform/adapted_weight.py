"""An adapted weight inside a program: it takes the place of an array while the program runs."""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import JaxprEqn

from lora_jax.transform import jaxprs, views
from lora_jax.transform.views import Atom, View, arrange, canonical
from lora_jax.variant import Base, Factors, Variant

STATIC = {"static": True}
Shared = Factors
"""The arrays that all weights of a variant share; kept apart, as loops must not slice them."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weight:
    """An adapted weight: base, factors, and how the program now sees their axes.

    It is a pytree whose leaves have the stacked axes first, in the order of `stack`, so that loops
    can scan over it.
    """

    base: Base
    factors: Factors
    dropout_key: Array | None
    variant: Variant = dataclasses.field(metadata=STATIC)
    inputs: tuple[int, ...] = dataclasses.field(metadata=STATIC)
    outputs: tuple[int, ...] = dataclasses.field(metadata=STATIC)
    stack: tuple[Atom, ...] = dataclasses.field(metadata=STATIC)
    view: View = dataclasses.field(metadata=STATIC)
    dtypes: tuple[Any, ...] = dataclasses.field(metadata=STATIC)
    """The weight's own dtype, then those that it was cast to, in order."""

    # -- operations that the weight passes through ------------------------------------------------

    def follow(self, eqn: JaxprEqn, operands: list[Any]) -> "Weight | None":
        """The weight after an operation on its layout, or None if that needs the dense array."""
        if jaxprs.is_cast(eqn):
            new = jnp.dtype(eqn.params["new_dtype"])
            return dataclasses.replace(self, dtypes=(*self.dtypes, new))
        if eqn.primitive.name == "pvary":
            return jaxprs.vary(self, eqn.params["axes"])
        if eqn.primitive.name == "sharding_constraint":
            return self._constrained(eqn)
        if (view := views.follow(eqn, self.view)) is not None:
            return self._split_stack(view)
        if (axes := views.sliced_axes(eqn, self.view.shape)) is not None:
            if not all(self.is_stacked(axis) for axis in axes):
                return None
            weight = self
            for axis in axes:
                weight = weight._sliced(eqn, operands, axis)
            return weight
        found = views.as_lookup(eqn, self.view.shape)
        if found and self.is_stacked(found.axis) and operands[1].ndim == 1:
            return self._row(eqn, found, operands[1][found.column])
        return None

    def parts(self, eqn: JaxprEqn) -> "list[Weight] | None":
        """The windows that an `unstack` or `split` of a stacked axis makes, or None without one."""
        found = views.as_parts(eqn, self.view.shape)
        if found is None or not self.is_stacked(found.axis):
            return None
        axis, ends = found.axis, itertools.accumulate(found.sizes, initial=0)
        parts = [self._range(axis, start, end) for start, end in itertools.pairwise(ends)]
        if found.kept:
            return parts
        return [dataclasses.replace(each, view=each.view.drop(axis)) for each in parts]

    def is_stacked(self, axis: int) -> bool:
        """Whether an axis of the view indexes stacked matrices; true for one without atoms."""
        return all(atom in self.stack for atom in self.view.axes[axis])

    def lead(self, axis: int) -> "Weight":
        """The same weight with a stacked axis of its view moved to the front of every leaf."""
        atoms = self.view.axes[axis]
        if atoms and self.stack[:1] == atoms:
            return self
        places = [self.stack.index(atom) for atom in atoms]
        size = math.prod(atom.size for atom in atoms)

        def move(leaf: Array) -> Array:
            leaf = jnp.moveaxis(leaf, places, range(len(places)))
            return leaf.reshape(size, *leaf.shape[len(places) :])

        # Its atoms may not be adjacent in the original array, so it becomes an axis of its own.
        whole = Atom(min(atom.axis for atom in (*self.stack, Atom(0, 1, 1))) - 1, 1, size)
        rest = tuple(atom for atom in self.stack if atom not in atoms)
        moved = jax.tree.map(move, self)
        return dataclasses.replace(
            moved, stack=(whole, *rest), view=self.view.replace(axis, (whole,))
        )

    def without_lead(self, axis: int) -> "Weight":
        """The weight inside a loop or `vmap` over the leading axis, which is `axis` of the view."""
        return dataclasses.replace(self, stack=self.stack[1:], view=self.view.drop(axis))

    def _constrained(self, eqn: JaxprEqn) -> "Weight":
        """Apply the program's sharding constraint to the base; factors are small, and stay.

        A base that is stored differently from how the program sees it also keeps its sharding.
        """
        stored = (*self.stack, *canonical((*self.in_atoms, *self.out_atoms)))
        plain = type(self.base) is Base and self.base.value.shape == self.view.shape
        if not plain or self.view.atoms != stored:
            return self
        value = eqn.primitive.bind(self.base.value, **eqn.params)
        return dataclasses.replace(self, base=dataclasses.replace(self.base, value=value))

    def _sliced(self, eqn: JaxprEqn, operands: list[Any], axis: int) -> "Weight":
        params = eqn.params
        if eqn.primitive.name == "dynamic_slice":
            return self._window(axis, operands[1 + axis], params["slice_sizes"][axis])
        start, end = params["start_indices"][axis], params["limit_indices"][axis]
        stride = params["strides"][axis] if params["strides"] else 1
        return self._range(axis, start, end, stride)

    def _range(self, axis: int, start: int, end: int, stride: int = 1) -> "Weight":
        led = self.lead(axis)
        cut = jax.tree.map(lambda leaf: lax.slice_in_dim(leaf, start, end, stride), led)
        return cut._resized(axis, len(range(start, end, stride)))

    def _row(self, eqn: JaxprEqn, found: views.Lookup, index: Array) -> "Weight | None":
        """One matrix of a stack, by an index that may be out of range."""
        if views.fill_value(eqn) is not None:
            return None
        nearest, inside = in_range(index, self.view.shape[found.axis])
        row = self._window(found.axis, nearest, 1)
        if not views.clips(eqn):

            def fill(leaf: Array) -> Array:
                floating = jnp.issubdtype(leaf.dtype, jnp.floating)
                return jnp.where(inside, leaf, jnp.nan) if floating else leaf

            row = jax.tree.map(fill, row)  # factors too, so that their gradient from here is zero
        return row if found.kept else dataclasses.replace(row, view=row.view.drop(found.axis))

    def _window(self, axis: int, start: Array, size: int) -> "Weight":
        led, start = self.lead(axis), _counting(start)

        def cut(leaf: Array) -> Array:
            starts = (start, *[jnp.zeros_like(start)] * (leaf.ndim - 1))
            sizes = (size, *leaf.shape[1:])
            # If the program counts negative starts from the end, it has already done so.
            return lax.dynamic_slice(leaf, starts, sizes, allow_negative_indices=False)

        return jax.tree.map(cut, led)._resized(axis, size)

    def _resized(self, axis: int, size: int) -> "Weight":
        """The weight after every leaf's leading axis was cut to `size`; size one is dropped."""
        whole = self.stack[0]
        if size == 1:
            row = jax.tree.map(lambda leaf: leaf[0], self)
            return dataclasses.replace(row, stack=self.stack[1:], view=self.view.replace(axis, ()))
        atom = Atom(whole.axis, whole.stride, size)
        return dataclasses.replace(
            self, stack=(atom, *self.stack[1:]), view=self.view.replace(axis, (atom,))
        )

    def _split_stack(self, view: View) -> "Weight":
        """Follow a new view, in which stacked atoms may be split or, at size one, dropped."""
        parts = [
            canonical(tuple(new for new in view.atoms if _within(new, old))) for old in self.stack
        ]
        stack = tuple(atom for part in parts for atom in part)
        if stack == self.stack:
            return dataclasses.replace(self, view=view)
        sizes = tuple(atom.size for atom in stack)
        split = jax.tree.map(
            lambda leaf: leaf.reshape(*sizes, *leaf.shape[len(self.stack) :]), self
        )
        return dataclasses.replace(split, stack=stack, view=view)

    def fold_dropout_key(self, number: Any) -> "Weight":
        """The same weight with other dropout: `number` is folded into its key, which must exist."""
        fold = over_stack(jax.random.fold_in, len(self.stack), in_axes=(0, None))
        return dataclasses.replace(self, dropout_key=fold(self.dropout_key, number))

    # -- what operations that use it need ---------------------------------------------------------

    def dense(self, shared: Shared) -> Array:
        """The effective weight as the program sees it; every faster computation must equal it."""
        merge = over_stack(
            lambda base, factors: self.variant.weight(base, with_shared(factors, shared)),
            len(self.stack),
        )
        array = merge(self.base, self.factors)
        for dtype in self.dtypes:
            array = array.astype(dtype)
        return arrange(array, (*self.stack, *self.in_atoms, *self.out_atoms), self.view.axes)

    def base_as(self, dtype: Any, accumulate: Any = None) -> Base:
        """The base, cast as the program has cast the weight and then to `dtype`."""
        base = self.base
        for each in (*self.dtypes[1:], dtype):
            base = base.astype(each) if each != base.dtype else base
        return dataclasses.replace(base, accumulate=accumulate)

    @property
    def in_atoms(self) -> tuple[Atom, ...]:
        return canonical(tuple(a for a in self.view.atoms if a.axis in self.inputs))

    @property
    def out_atoms(self) -> tuple[Atom, ...]:
        return canonical(tuple(a for a in self.view.atoms if a.axis in self.outputs))


def over_stack(function: Callable[..., Any], depth: int, **options: Any) -> Callable[..., Any]:
    """A function of one matrix, mapped over as many leading stacked axes."""
    for _ in range(depth):
        function = jax.vmap(function, **options)
    return function


def with_shared(factors: Factors, shared: Shared) -> Factors:
    """Factors as a variant's functions get them, with the arrays that all its matrices share."""
    if double := factors.trainable.keys() & shared.trainable.keys():
        raise ValueError(f"{sorted(double)} are both of one matrix and shared_trainable")
    trainable = {**factors.trainable, **shared.trainable}
    return Factors(trainable, {**factors.constants, **shared.constants})


def _within(part: Atom, whole: Atom) -> bool:
    ends = part.stride * part.size, whole.stride * whole.size
    return part.axis == whole.axis and part.stride >= whole.stride and ends[0] <= ends[1]


def in_range(index: Array, size: int) -> tuple[Array, Array]:
    """The nearest index in range, and whether the given index was in range."""
    index = _counting(index)
    nearest = jnp.clip(index, 0, size - 1)
    return nearest, nearest == index


def _counting(index: Array) -> Array:
    """The same index in an integer type of at least 32 bits, enough for a long table."""
    return index.astype(jnp.int32) if jnp.iinfo(index.dtype).bits < 32 else index


def dot(
    weight: Weight, eqn: JaxprEqn, x: Array, side: int, use: int, shared: Shared
) -> Array | None:
    """`dot_general` with a weight on one side (0 left, 1 right) and `x` on the other.

    Args:
      use: a number that differs between the uses of a weight, so that each has its own dropout.

    Returns None if it is not the product of `x` with the whole matrix or its transpose.
    """
    (mine, theirs), (my_batch, their_batch) = (
        (dims[side], dims[1 - side]) for dims in eqn.params["dimension_numbers"]
    )
    free = tuple(d for d in range(len(weight.view.axes)) if d not in (*mine, *my_batch))
    # Stacked axes that x lacks: all its matrices multiply the same x.
    wide = tuple(d for d in free if weight.view.axes[d] and weight.is_stacked(d))
    columns = tuple(d for d in free if d not in wide)
    contracted, kept = weight.view.pick(mine), weight.view.pick(columns)
    turned = canonical(contracted) != weight.in_atoms
    expected = (
        (weight.out_atoms, weight.in_atoms) if turned else (weight.in_atoms, weight.out_atoms)
    )
    if (
        (canonical(contracted), canonical(kept)) != expected
        or set(weight.view.pick((*my_batch, *wide))) != set(weight.stack)
        or jaxprs.unusual(eqn)
    ):
        return None

    tokens = tuple(d for d in range(x.ndim) if d not in (*theirs, *their_batch))
    x = _transpose(x, (*their_batch, *tokens, *theirs))
    outer = x.ndim - len(theirs)
    x = arrange(x, contracted, (canonical(contracted),), keep=outer)
    accumulate = eqn.params["preferred_element_type"]
    precision = jaxprs.precision(eqn)
    with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
        product = functools.partial(
            _product, turned=turned, accumulate=accumulate, use=use, shared=shared
        )
        y = _over_stack(product, weight, x, (*my_batch, *wide), len(my_batch))
    outer += len(wide)
    y = arrange(y, canonical(kept), tuple(weight.view.axes[d] for d in columns), keep=outer)
    batch, inner = range(len(my_batch)), range(len(my_batch) + len(wide), outer)
    places = dict(zip(wide, range(len(my_batch), inner.start), strict=True))
    places |= dict(zip(columns, range(outer, y.ndim), strict=True))
    mine = [places[d] for d in free]
    # The free axes of the left side come before those of the right.
    y = _transpose(y, (*batch, *mine, *inner) if side == 0 else (*batch, *inner, *mine))
    return y.astype(eqn.outvars[0].aval.dtype)  # type: ignore[attr-defined]


def _over_stack(
    product: Callable[[Weight, Array], Array],
    weight: Weight,
    x: Array,
    stack: tuple[int, ...],
    own: int,
) -> Array:
    """The product of each matrix of the stack with x; the axes of the stack come first.

    Args:
      stack: the axes of the weight's view that index it.
      own: for how many of these, in their order, x has a leading axis, too: an x for each matrix.
    """
    if not stack:
        return product(weight, x)
    dim, *rest = stack
    later = tuple(d - (d > dim) for d in rest)
    return jax.vmap(
        lambda one, z: _over_stack(product, one.without_lead(dim), z, later, max(own - 1, 0)),
        in_axes=(0, 0 if own else None),
    )(weight.lead(dim), x)


def _product(
    weight: Weight, x: Array, *, turned: bool, accumulate: Any, use: int, shared: Shared
) -> Array:
    """The product of x, of shape (..., in), with one matrix, or with its transpose if `turned`.

    Args:
      accumulate: the dtype that the program asks of the product, or None.
      use: see `dot`.
    """
    dtype = jnp.promote_types(x.dtype, weight.dtypes[-1])
    base = weight.base_as(dtype, accumulate if accumulate != dtype else None)
    x = x.astype(dtype)
    factors = with_shared(weight.factors, shared)
    if turned:
        return weight.variant.dot_t(x, base, factors)
    key = None if weight.dropout_key is None else jax.random.fold_in(weight.dropout_key, use)
    return weight.variant.dot(x, base, factors, dropout_key=key)


def lookup(weight: Weight, eqn: JaxprEqn, operands: list[Any], shared: Shared) -> Array | None:
    """The result of a `gather` of rows, or None if it has another kind or axis."""
    found, view = views.as_lookup(eqn, weight.view.shape), weight.view
    if not found or canonical(view.axes[found.axis]) != weight.in_atoms:
        return None
    # Other stacked axes: the same rows of all tables.
    wide = tuple(
        dim
        for dim, axis in enumerate(view.axes)
        if axis and dim not in (found.axis, *found.tables) and weight.is_stacked(dim)
    )
    stack = (*found.tables, *wide)
    if set(view.pick(stack)) != set(weight.stack):
        return None
    index = operands[0][..., found.column]
    rows, inside = in_range(index, view.shape[found.axis])

    def take(one: Weight, rows: Array) -> Array:
        factors = with_shared(one.factors, shared)
        return one.variant.take(rows, one.base_as(one.dtypes[-1]), factors)

    own = [place for _, place in found.batch]
    y = _over_stack(take, weight, jnp.moveaxis(rows, own, range(len(own))), stack, len(own))
    gone = found.tables if found.kept else (*found.tables, found.axis)
    rest = [dim for dim in range(len(view.axes)) if dim not in gone]
    columns = [dim for dim in rest if dim not in wide]
    axes = tuple(() if dim == found.axis else view.axes[dim] for dim in columns)
    y = arrange(y, weight.out_atoms, axes, keep=rows.ndim + len(wide))
    y = jnp.moveaxis(y, range(len(own), len(stack)), [rows.ndim + rest.index(d) for d in wide])
    y = jnp.moveaxis(y, range(len(own)), own)
    if not views.clips(eqn):
        fill = jnp.nan if (value := views.fill_value(eqn)) is None else value
        inside = jnp.expand_dims(inside, [*range(rows.ndim, y.ndim)])
        y = jnp.where(inside, y, jnp.asarray(fill, y.dtype))
    offsets = eqn.params["dimension_numbers"].offset_dims
    return jnp.moveaxis(y, range(rows.ndim, y.ndim), offsets)


def _transpose(array: Array, order: tuple[int, ...]) -> Array:
    return array if order == tuple(range(array.ndim)) else array.transpose(order)
