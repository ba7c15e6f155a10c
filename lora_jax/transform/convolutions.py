"""Convolutions by an adapted kernel: one to as many channels as the rank, then a 1 x 1.

The matrix of a kernel has the input channels and all places as inputs, and the output channels as
outputs. A low-rank update A^T B of it is a convolution by A, with the strides, padding and
dilations of the program, and then a product of channels by B, as in PEFT and loralib. So no update
of the kernel's size is formed, and none has to be differentiated. Kernels of groups are small, and
are merged: a convolution by A would make as many channels for each group.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import JaxprEqn

from lora_jax.methods.products import dropout
from lora_jax.transform.adapted_weight import Shared, Weight, with_shared
from lora_jax.transform.views import arrange


def has_rule(eqn: JaxprEqn) -> bool:
    """Whether the right side of a convolution, its kernel, need not be merged."""
    return eqn.params["feature_group_count"] == eqn.params["batch_group_count"] == 1


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
    x, ends = x.astype(dtype), (view.axes[out],)
    key = None if weight.dropout_key is None else jax.random.fold_in(weight.dropout_key, use)

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
