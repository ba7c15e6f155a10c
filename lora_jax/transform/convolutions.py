"""Convolutions by an adapted kernel: one to as many channels as the rank, then a 1 x 1.

The matrix of a kernel has the input channels and all places as inputs, and the output channels as
outputs. A low-rank update A^T B of it is a convolution by A, with the strides, padding and
dilations of the program, and then a product of channels by B, as in PEFT and loralib. So no update
of the kernel's size is formed, and none has to be differentiated. Kernels of groups are small, and
are merged: a convolution by A would make as many channels for each group.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import JaxprEqn

from lora_jax.methods.products import dropout
from lora_jax.transform import jaxprs
from lora_jax.transform.adapted_weight import Shared, Weight, with_shared
from lora_jax.transform.views import arrange


def has_rule(eqn: JaxprEqn) -> bool:
    """Whether the right side of a convolution, its kernel, need not be merged."""
    return eqn.params["feature_group_count"] == eqn.params["batch_group_count"] == 1


def as_product(eqn: JaxprEqn) -> jaxprs.Body | None:
    """The product of channels that a convolution by a kernel of one place is, or None."""
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    one_place = all(jaxprs.shape(eqn.invars[1])[dim] == 1 for dim in numbers.rhs_spec[2:])
    apart = any(rate > 1 for rate in params["lhs_dilation"])
    if not one_place or apart or any(map(any, params["padding"])) or not has_rule(eqn):
        return None
    steps = [1] * len(numbers.lhs_spec)
    for dim, step in zip(numbers.lhs_spec[2:], params["window_strides"], strict=True):
        steps[dim] = step

    def product(x: Array, kernel: Array) -> Array:
        rows = lax.slice(x, [0] * x.ndim, x.shape, steps)
        matrix = jnp.squeeze(kernel, numbers.rhs_spec[2:])
        inputs = int(numbers.rhs_spec[1] > numbers.rhs_spec[0])
        y = lax.dot_general(
            rows,
            matrix,
            (((numbers.lhs_spec[1],), (inputs,)), ((), ())),
            precision=params["precision"],
            preferred_element_type=params["preferred_element_type"],
        )
        kept = (dim for dim in range(x.ndim) if dim != numbers.lhs_spec[1])
        places = (numbers.out_spec[numbers.lhs_spec.index(dim)] for dim in kept)
        return jnp.moveaxis(y, range(y.ndim), (*places, numbers.out_spec[1]))

    avals: list[Any] = [var.aval for var in eqn.invars]
    sides = (jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals)
    return jaxprs.inner(jax.make_jaxpr(product)(*sides))


def convolve(weight: Weight, eqn: JaxprEqn, x: Array, use: int, shared: Shared) -> Array | None:
    """`conv_general_dilated` of x by an adapted kernel.

    Args:
      use: a number that differs between the uses of a weight, so that each has its own dropout.

    Returns None if the kernel has to be merged: the program sees it in parts or uses other axes as
    its channels, or the method is not a low-rank update.
    """
    spec, view = eqn.params["dimension_numbers"].rhs_spec, weight.view
    out, *inner = spec
    used = set(view.pick(tuple(inner))), set(view.pick((out,)))
    if weight.stack or used != (set(weight.in_atoms), set(weight.out_atoms)) or not has_rule(eqn):
        return None
    dtype = jnp.promote_types(x.dtype, weight.dtypes[-1])
    base, factors = weight.base_as(dtype), with_shared(weight.factors, shared)
    if (parts := weight.variant.as_rescaled_lora(base, factors)) is None:
        return None
    a, b, gain = parts
    key = None if weight.dropout_key is None else jax.random.fold_in(weight.dropout_key, use)
    x, ends = x.astype(dtype), (view.axes[out],)
    places = tuple(axes for dim, axes in enumerate(view.axes) if dim != out)
    rows = arrange(a.astype(dtype), weight.in_atoms, places, keep=1)
    down = jnp.moveaxis(rows, 0, out)
    hidden = _convolved(eqn, dropout(x, factors, key), down)
    up = arrange(b.astype(dtype), weight.out_atoms, ends, keep=1)
    kernel = arrange(base.dense(), (*weight.in_atoms, *weight.out_atoms), view.axes)
    y = _convolved(eqn, x, kernel)
    y = y + _mixed(eqn, hidden, up).astype(y.dtype)
    if gain is not None:
        columns = arrange(gain, weight.out_atoms, ends)
        channel = eqn.params["dimension_numbers"].out_spec[1]
        others = [axis for axis in range(y.ndim) if axis != channel]
        y = y * jnp.expand_dims(columns, others).astype(y.dtype)
    return y.astype(eqn.outvars[0].aval.dtype)  # type: ignore[attr-defined]


def _convolved(eqn: JaxprEqn, x: Array, kernel: Array) -> Array:
    """The program's convolution, by another kernel."""
    return eqn.primitive.bind(x, kernel, **eqn.params)  # type: ignore[return-value]


def _mixed(eqn: JaxprEqn, hidden: Array, up: Array) -> Array:
    """The channels of `hidden` mixed by `up`, (rank, out), at each place."""
    channel = eqn.params["dimension_numbers"].out_spec[1]
    y = lax.dot_general(
        hidden,
        up,
        (((channel,), (0,)), ((), ())),
        precision=eqn.params["precision"],
        preferred_element_type=eqn.params["preferred_element_type"],
    )
    return jnp.moveaxis(y, -1, channel)
