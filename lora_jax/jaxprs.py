"""Reading jaxprs in a way that holds from jax 0.10 on; all that depends on the version is here."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

JIT = ("jit", "pjit")
CALLS = (*JIT, "closed_call", "core_call")
REMAT = ("checkpoint", "remat2", "remat")


def trace(function: Callable[..., Any], *args: Any) -> tuple[Jaxpr, list[Any], Any]:
    """The jaxpr of a function of arrays, the constants it closes over, and its output's shape."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    return closed.jaxpr, list(closed.consts), shape


def shape(var: Any) -> tuple[int, ...]:
    """The shape of a variable's values."""
    return var.aval.shape


def inner(closed: Any) -> tuple[Jaxpr, Sequence[Any]]:
    """A jaxpr found in an equation's parameters, and its constants."""
    if hasattr(closed, "consts"):
        return getattr(closed, "jaxpr", closed), closed.consts
    return closed, ()


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


def scan_sizes(eqn: JaxprEqn) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are carried."""
    params = eqn.params
    if "ft_in" in params:  # jax >= 0.11
        consts, carry, _ = params["ft_in"].unpack()
        return len(list(consts)), len(list(carry))
    return params["num_consts"], params["num_carry"]


def unchanged(jaxpr: Jaxpr, consts: int, carry: int) -> list[bool]:
    """For each value that a loop carries, whether its body hands it on as it came."""
    carried = jaxpr.invars[consts : consts + carry]
    return [old is new for old, new in zip(carried, jaxpr.outvars[:carry], strict=True)]


def call(eqn: JaxprEqn) -> tuple[Jaxpr, Sequence[Any]] | None:
    """The body of an inner `jit` (or plain call) that may be evaluated in place, else None.

    A jit that prescribes shardings is not such a call: its prescriptions must be kept.
    """
    if eqn.primitive.name not in CALLS:
        return None
    params = eqn.params
    if eqn.primitive.name in JIT:
        shardings = (*params["in_shardings"], *params["out_shardings"])
        if any(type(each).__name__ != "UnspecifiedValue" for each in shardings):
            return None
    return inner(params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"])


def bodies(eqn: JaxprEqn) -> list[Jaxpr]:
    """The jaxprs in an equation's parameters that take exactly the equation's operands."""
    found = []
    for value in eqn.params.values():
        if isinstance(value, Jaxpr | ClosedJaxpr):
            jaxpr, _ = inner(value)
            if len(jaxpr.invars) == len(eqn.invars):
                found.append(jaxpr)
    return found
