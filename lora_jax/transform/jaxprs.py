"""Trace functions, and read equations, with jax 0.10 and later (`walk` enters what they run)."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun
from jax.interpreters import partial_eval


def trace(function: Callable[..., Any], *args: Any) -> tuple[Jaxpr, list[Any], Any]:
    """The jaxpr of a function of arrays, the constants it closes over, and its output's shape.

    Equations that do not affect an output are removed: NNX's transforms return every weight that
    they take.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    return _needed(closed), list(closed.consts), shape


def trace_once(function: Any, *args: Any) -> tuple[Jaxpr, list[Any], Any]:
    """`trace` of a jitted function. JAX remembers it for arguments of the same shapes."""
    traced = function.trace(*args)
    return _needed(traced.jaxpr), list(traced.jaxpr.consts), traced.out_info


def _needed(closed: ClosedJaxpr) -> Jaxpr:
    """The equations that affect an output."""
    outputs = [True] * len(closed.jaxpr.outvars)
    return partial_eval.dce_jaxpr(closed.jaxpr, outputs, instantiate=True)[0]


def shape(var: Any) -> tuple[int, ...]:
    """The shape of a variable's values."""
    return var.aval.shape


def apply(jaxpr: Jaxpr, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """Run one equation of a jaxpr exactly as JAX would, its own derivative rules included."""
    one = jaxpr.replace(
        constvars=(),
        invars=[v for v in eqn.invars if not isinstance(v, Literal)],
        outvars=list(eqn.outvars),
        eqns=[eqn],
        effects=eqn.effects,
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    arrays = [x for x, v in zip(operands, eqn.invars, strict=True) if not isinstance(v, Literal)]
    return jaxpr_as_fun(ClosedJaxpr(one, ()))(*arrays)


def varying(arrays: Any) -> frozenset[Any]:
    """The axes of the enclosing `shard_map` along which any array of a tree may differ."""
    types = map(jax.typeof, jax.tree.leaves(arrays))
    return frozenset().union(*(each.mat.varying for each in types))


def vary(arrays: Any, axes: Iterable[Any]) -> Any:
    """Mark the arrays of a tree as varying along axes of a `shard_map`, where they are not yet."""

    def one(array: Any) -> Any:
        return lax.pcast(array, tuple(a for a in axes if a not in varying(array)), to="varying")

    return jax.tree.map(one, arrays)


def precision(eqn: JaxprEqn) -> str | None:
    """The name of a product's precision ("" if unset), or None if no single name describes it."""
    wanted = eqn.params["precision"]
    if wanted is None:
        return ""
    sides = set(wanted) if isinstance(wanted, tuple) else {wanted}
    first = sides.pop()
    if sides or not hasattr(first, "name"):
        return None
    if isinstance(first, lax.Precision) or first.name == "DEFAULT":  # of either enum
        return first.name.lower()
    return first.name


def unusual(eqn: JaxprEqn) -> str | None:
    """The option of a `dot_general` that an adapter's products cannot have as well, or None."""
    if eqn.params["out_sharding"] is not None:
        return "out_sharding"
    return "precision" if precision(eqn) is None else None


def as_array(var: Any, constant: Any) -> Any:
    """A constant of a trace as an array of a variable's type; a scalar may be weakly typed."""
    if var.aval.weak_type:
        return jnp.asarray(np.asarray(constant).item())
    return jnp.asarray(constant, var.aval.dtype)


def where_rows(rows: Any, new: Sequence[Any], old: Sequence[Any]) -> list[Any]:
    """The new arrays in some rows, and the old ones in the others.

    Args:
      rows: truth values, of the leading axes of all arrays.
    """
    axes = [range(rows.ndim, x.ndim) for x in new]
    return [
        jnp.where(jnp.expand_dims(rows, axis), x, y)
        for axis, x, y in zip(axes, new, old, strict=True)
    ]


def is_cast(eqn: JaxprEqn) -> bool:
    """Whether an equation casts to a float whose rounding is that of ordinary computation.

    Casts to float8 and less are not such: they change what a weight is.
    """
    if eqn.primitive.name != "convert_element_type":
        return False
    new = eqn.params["new_dtype"]
    return jnp.issubdtype(new, jnp.floating) and jnp.finfo(new).bits >= 16
