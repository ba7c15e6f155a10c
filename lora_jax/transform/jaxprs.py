"""Trace functions, read their jaxprs and walk over them, with jax 0.10 and later.

All that depends on JAX's version is here, and all that knows what runs inside an operation. A
`Walk` evaluates a jaxpr over any kind of value. A subclass says what its values are, what an
operation does with them, and how it enters loops and branches:

* `interpret`: arrays and adapted weights, by JAX, inside a trace;
* `discover`: which axes of which parameter a value has, without computing anything;
* `bfloat16_products`: arrays by JAX, with some products rounded;
* `lora_jax.compiled.by_numpy`: arrays by NumPy;
* `lora_jax.compiled.jaxpr_costs`: the bytes of values.

Two readers of jaxprs are not walks: `lora_jax.training.fingerprint` writes equations down one after
another, and `final_products` goes backwards.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun
from jax.interpreters import partial_eval

JIT = ("jit", "pjit")
CALLS = (*JIT, "closed_call", "core_call")
REMAT = ("checkpoint", "remat2", "remat")
CUSTOM = ("custom_jvp_call", "custom_vjp_call")


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


def apply(eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """Run one equation of a jaxpr exactly as JAX would, its own derivative rules included."""
    one = _empty().replace(
        invars=[v for v in eqn.invars if not isinstance(v, Literal)],
        outvars=list(eqn.outvars),
        eqns=[eqn],
        effects=eqn.effects,
    )
    arrays = [x for x, v in zip(operands, eqn.invars, strict=True) if not isinstance(v, Literal)]
    return jaxpr_as_fun(ClosedJaxpr(one, ()))(*arrays)


@functools.cache
def _empty() -> Jaxpr:
    """A jaxpr of nothing, to put an equation into."""
    jaxpr = jax.make_jaxpr(lambda: ())().jaxpr
    return jaxpr.replace(debug_info=jaxpr.debug_info.with_unknown_names())


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


# -- walks -----------------------------------------------------------------------------------------


class Body(NamedTuple):
    """A jaxpr found in an equation's parameters, and its constants."""

    jaxpr: Jaxpr
    consts: Sequence[Any]


class Scan(NamedTuple):
    """A `scan`, and its operands by what they are."""

    body: Body
    fixed: list[Any]
    """What all iterations get."""
    carry: list[Any]
    rows: list[Any]
    """What each iteration gets a row of."""

    @classmethod
    def of(cls, eqn: JaxprEqn, operands: Sequence[Any]) -> Self:
        params = eqn.params
        if "ft_in" in params:  # jax >= 0.11
            consts, carry, _ = params["ft_in"].unpack()
            first, carried = len(list(consts)), len(list(carry))
        else:
            first, carried = params["num_consts"], params["num_carry"]
        last = first + carried
        parts = operands[:first], operands[first:last], operands[last:]
        return cls(inner(params["jaxpr"]), *map(list, parts))


class While(NamedTuple):
    """A `while`, and its operands by what they are."""

    test: Body
    test_fixed: list[Any]
    body: Body
    fixed: list[Any]
    carry: list[Any]

    @classmethod
    def of(cls, eqn: JaxprEqn, operands: Sequence[Any]) -> Self:
        params = eqn.params
        first = params["cond_nconsts"]
        last = first + params["body_nconsts"]
        test, body = inner(params["cond_jaxpr"]), inner(params["body_jaxpr"])
        return cls(
            test, list(operands[:first]), body, list(operands[first:last]), list(operands[last:])
        )


class Walk:
    """An evaluation of jaxprs over values of some kind."""

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """The outputs of a jaxpr. Each value is let go after its last use."""
        last = last_uses(jaxpr)
        values: dict[Any, Any] = {}

        def write(variables: Sequence[Any], results: Sequence[Any]) -> None:
            for var, value in zip(variables, results, strict=True):
                if var in last:
                    values[var] = self.held(var, value)

        def read(atom: Any) -> Any:
            return self.constant(atom, atom.val) if isinstance(atom, Literal) else values[atom]

        write(jaxpr.constvars, list(map(self.constant, jaxpr.constvars, consts)))
        write(jaxpr.invars, inputs)
        for eqn in jaxpr.eqns:
            write(eqn.outvars, self.step(eqn, [read(atom) for atom in eqn.invars]))
            for atom in eqn.invars:
                if not isinstance(atom, Literal) and last[atom] is eqn:
                    values.pop(atom, None)
        return [read(atom) for atom in jaxpr.outvars]

    def step(self, eqn: JaxprEqn, operands: list[Any]) -> Any:
        """The results of one equation."""
        match eqn.primitive.name:
            case "scan":
                return self.scan(eqn, operands)
            case "while":
                return self.loop(eqn, operands)
            case "cond":
                return self.branch(eqn, operands)
        if body := self.called(eqn):
            return self.run(*body, operands)
        return self.operation(eqn, operands)

    def constant(self, atom: Any, value: Any) -> Any:
        """What represents a literal, or an array that a function closes over."""
        return value

    def held(self, var: Any, value: Any) -> Any:
        """The value as it is kept for a variable."""
        return value

    def called(self, eqn: JaxprEqn) -> Body | None:
        """What runs in the place of an equation, or None."""
        return call(eqn)

    def operation(self, eqn: JaxprEqn, operands: list[Any]) -> Any:
        """The results of an equation that has no body, or whose body is not entered."""
        raise NotImplementedError

    def scan(self, eqn: JaxprEqn, operands: list[Any]) -> Any:
        return self.operation(eqn, operands)

    def loop(self, eqn: JaxprEqn, operands: list[Any]) -> Any:
        return self.operation(eqn, operands)

    def branch(self, eqn: JaxprEqn, operands: list[Any]) -> Any:
        return self.operation(eqn, operands)


def last_uses(jaxpr: Jaxpr) -> dict[Any, JaxprEqn | None]:
    """The equation that uses each variable last; None for what the jaxpr returns."""
    last: dict[Any, JaxprEqn | None] = {
        atom: eqn for eqn in jaxpr.eqns for atom in eqn.invars if not isinstance(atom, Literal)
    }
    return last | dict.fromkeys(_variables(jaxpr.outvars))


def inner(closed: Any) -> Body:
    """A jaxpr found in an equation's parameters, and its constants."""
    return Body(getattr(closed, "jaxpr", closed), getattr(closed, "consts", ()))


def inside(eqn: JaxprEqn) -> list[Jaxpr]:
    """All jaxprs in an equation's parameters."""
    values = (v if isinstance(v, tuple | list) else (v,) for v in eqn.params.values())
    found = itertools.chain(*values)
    return [inner(each).jaxpr for each in found if isinstance(each, Jaxpr | ClosedJaxpr)]


def call(eqn: JaxprEqn) -> Body | None:
    """The body of an inner `jit` (or plain call) that may be evaluated in place, else None.

    A `jit` that sets shardings gives None, because these must be kept.
    """
    if eqn.primitive.name not in CALLS:
        return None
    params = eqn.params
    if eqn.primitive.name in JIT:
        shardings = (*params["in_shardings"], *params["out_shardings"])
        if any(type(each).__name__ != "UnspecifiedValue" for each in shardings):
            return None
    return inner(params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"])


def any_call(eqn: JaxprEqn) -> Body | None:
    """What a call of any kind calls (`jit`, rematerialisation, custom derivatives), or None."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call"):
        if (closed := eqn.params.get(name)) is not None:
            body = inner(closed)
            shapes = [list(map(shape, each.invars)) for each in (body.jaxpr, eqn)]
            # Of other shapes, it acts on parts, as in a reduction.
            return body if shapes[0] == shapes[1] else None
    return None


def by_platform(eqn: JaxprEqn) -> bool:
    """Whether the branches of a `cond` are for different platforms, so only one can be lowered."""
    return eqn.params.get("branches_platforms") is not None


def bodies(eqn: JaxprEqn) -> list[tuple[Body, Sequence[int]]]:
    """The jaxprs that an equation runs, and which of its operands each takes, in order.

    For an unknown operation, a jaxpr counts only if it takes as many inputs as there are operands.
    """
    params, everything = eqn.params, range(len(eqn.invars))
    match eqn.primitive.name:
        case "cond":
            return [(inner(branch), everything[1:]) for branch in params["branches"]]
        case "while":
            return [(inner(params["body_jaxpr"]), everything[params["cond_nconsts"] :])]
        case "custom_linear_solve":
            product = inner(params["jaxprs"].matvec)
            consts = params["const_lengths"].matvec
            vector = len(everything) - (len(product.jaxpr.invars) - consts)
            return [(product, [*everything[:consts], *everything[vector:]])]
    found = [inner(v) for v in params.values() if isinstance(v, Jaxpr | ClosedJaxpr)]
    return [(body, everything) for body in found if len(body.jaxpr.invars) == len(everything)]


def unchanged(jaxpr: Jaxpr, consts: int, carry: int) -> list[bool]:
    """For each value that a loop carries, whether its body returns it unchanged."""
    carried = jaxpr.invars[consts : consts + carry]
    return [old is new for old, new in zip(carried, jaxpr.outvars[:carry], strict=True)]


def final_products(jaxpr: Jaxpr, ends: Iterable[Any]) -> tuple[set[int], set[Any]]:
    """The products and the variables that reach `ends` through no other product.

    Values are not followed back from one iteration of a loop to the iteration before.
    """
    found: set[int] = set()
    live = _variables(ends)
    for eqn in reversed(jaxpr.eqns):
        reached = [var in live for var in eqn.outvars]
        if not any(reached):
            continue
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            found.add(id(eqn))
        elif inside := bodies(eqn):
            for (body, _), places in inside:
                hits = [var for var, hit in zip(body.outvars, reached, strict=True) if hit]
                products, through = final_products(body, hits)
                found |= products
                pairs = zip((eqn.invars[i] for i in places), body.invars, strict=True)
                live |= _variables(var for var, inner_var in pairs if inner_var in through)
        else:
            live |= _variables(eqn.invars)
    return found, live


def _variables(atoms: Iterable[Any]) -> set[Any]:
    return {atom for atom in atoms if not isinstance(atom, Literal)}
