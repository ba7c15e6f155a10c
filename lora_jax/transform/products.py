"""Where an adapted weight is finally used: products with it, and lookups of its rows."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import JaxprEqn

from lora_jax.transform import jaxprs, views
from lora_jax.transform.adapted_weight import Shared, Weight, in_range, with_shared
from lora_jax.transform.views import arrange, canonical


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
    contracted, kept = weight.view.pick(mine), weight.view.pick(free)
    turned = canonical(contracted) == weight.out_atoms != weight.in_atoms
    expected = (
        (weight.out_atoms, weight.in_atoms) if turned else (weight.in_atoms, weight.out_atoms)
    )
    if (
        (canonical(contracted), canonical(kept)) != expected
        or set(weight.view.pick(my_batch)) != set(weight.stack)
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
        y = _over_stack(product, weight, x, my_batch)
    y = arrange(y, canonical(kept), tuple(weight.view.axes[d] for d in free), keep=outer)
    if side == 0:  # the weight's free axes come before the tokens'
        batch, inner = range(len(my_batch)), range(len(my_batch), outer)
        y = _transpose(y, (*batch, *range(outer, y.ndim), *inner))
    return y.astype(eqn.outvars[0].aval.dtype)  # type: ignore[attr-defined]


def _over_stack(
    product: Callable[[Weight, Array], Array], weight: Weight, x: Array, batch: tuple[int, ...]
) -> Array:
    """The product of each matrix of the stack with its own x, whose batch axes come first.

    Args:
      batch: the axes of the weight's view that index the stack, in the order of x's batch axes.
    """
    if not batch:
        return product(weight, x)
    dim, *rest = batch
    later = tuple(d - (d > dim) for d in rest)
    return jax.vmap(lambda one, z: _over_stack(product, one.without_lead(dim), z, later))(
        weight.lead(dim), x
    )


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
    """The result of a `gather` of rows, or None if it is of another kind or axis."""
    found = views.as_lookup(eqn, weight.view.shape)
    if not found or weight.stack or canonical(weight.view.axes[found.axis]) != weight.in_atoms:
        return None
    index = operands[0][..., found.column]
    rows, inside = in_range(index, weight.view.shape[found.axis])
    factors = with_shared(weight.factors, shared)
    y = weight.variant.take(rows, weight.base_as(weight.dtypes[-1]), factors)
    rest = weight.view.replace(found.axis, ()) if found.kept else weight.view.drop(found.axis)
    y = arrange(y, weight.out_atoms, rest.axes, keep=rows.ndim)
    if not views.clips(eqn):
        fill = jnp.nan if (value := views.fill_value(eqn)) is None else value
        inside = inside.reshape(rows.shape + (1,) * len(rest.axes))
        y = jnp.where(inside, y, jnp.asarray(fill, y.dtype))
    offsets = eqn.params["dimension_numbers"].offset_dims
    return jnp.moveaxis(y, range(rows.ndim, y.ndim), offsets)


def _transpose(array: Array, order: tuple[int, ...]) -> Array:
    return array if order == tuple(range(array.ndim)) else array.transpose(order)
