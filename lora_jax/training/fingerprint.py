"""Compare functions by the programs that JAX traces: equal fingerprints mean equal programs."""

import dataclasses
import enum
import functools
import hashlib
import operator
import sys
import types
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

RULES = ("custom_jvp", "custom_vjp", "custom_vmap")
"""Operations with rules of their own: what they compute is in a jaxpr beside the rules."""
OUTSIDE = "io_callback"
"""An operation that may do something else at each call, whatever its arguments are."""
PLAIN = (str, bytes, bool, int, type(None))
KNOWN = ("jax", "jaxlib")
"""Packages whose objects are described in full by their `repr`, unless it has an address."""


def fingerprint(function: Callable[..., Any], *args: Any) -> str:
    """SHA-256 of the program of a function of arrays (or their shapes), and of its argument types.

    Operations, their order and settings, numbers written into them and arrays that the function
    closes over all count, by value; names of variables do not. A Python function that the program
    calls back is identified by its module and name, and is assumed to be pure, as
    `jax.pure_callback` requires. What a bound method or a partial binds counts by value as well.
    What cannot be compared in this way (a lambda, a function made within another, any
    `io_callback`) equals nothing, not even itself.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    digest = hashlib.sha256()
    for tree in (args, shape):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}\n".encode())
    for part in _closed(closed):
        digest.update(part)
    return digest.hexdigest()


def _closed(closed: ClosedJaxpr) -> Iterator[bytes]:
    yield from _jaxpr(closed.jaxpr)
    for const in closed.consts:
        yield from _value(const)


def _jaxpr(jaxpr: Jaxpr) -> Iterator[bytes]:
    """The parts of a jaxpr; variables are numbered in the order in which they appear."""
    numbers: dict[Any, int] = {}

    def atom(one: Any) -> Iterator[bytes]:
        if isinstance(one, Literal):
            yield from _value(one.val)
        else:
            yield f"%{numbers.setdefault(one, len(numbers))}".encode()
        yield f":{one.aval} {getattr(one.aval, 'weak_type', '')};".encode()

    for each in (*jaxpr.constvars, *jaxpr.invars):
        yield from atom(each)
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        yield f"\n{name}(".encode()
        if name == OUTSIDE:
            yield _nothing()
        for each in eqn.invars:
            yield from atom(each)
        for key, value in sorted(eqn.params.items()):
            yield f"{key}=".encode()
            # Custom rules do not count here: they are traced where they are used.
            yield from _value(value, functions_count=not name.startswith(RULES))
        yield from _value(eqn.ctx)  # the settings that apply to it, such as how keys are drawn from
        yield b")->"
        for each in eqn.outvars:
            yield from atom(each)
    for each in jaxpr.outvars:
        yield from atom(each)


def _value(value: Any, functions_count: bool = True) -> Iterator[bytes]:
    match value:
        case ClosedJaxpr():
            yield from _closed(value)
        case Jaxpr():
            yield from _jaxpr(value)
        case jax.Array() if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            yield from _value((str(value.dtype), jax.random.key_data(value)))
        case np.ndarray() | np.generic() | jax.Array():
            array = np.asarray(value)
            yield f"{array.dtype}{array.shape}".encode()
            yield _nothing() if array.dtype.hasobject else array.tobytes()
        case Mapping():
            yield from _value([type(value), *sorted(value.items(), key=str)], functions_count)
        case tuple() | list():
            yield b"("
            if type(value) not in (tuple, list):
                yield from _value(type(value))
            for each in value:
                yield from _value(each, functions_count)
            yield b")"
        case float() | complex() | np.dtype():
            yield repr(value).encode()
        case enum.Enum():
            yield from _value((type(value), value.name))
        case jax.tree_util.PyTreeDef():
            yield from _value((value.node_data(), value.children()))
        case _ if not functions_count and (callable(value) or hasattr(value, "__name__")):
            yield b"f"
        case _ if callable(value) and _is_importable(value):
            yield f"{value.__module__}.{value.__qualname__}".encode()
        case functools.partial():
            yield from _value((type(value), value.func, value.args, value.keywords))
        case types.MethodType():
            yield from _value((value.__func__, value.__self__))
        case _ if dataclasses.is_dataclass(type(value)):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            yield from _value((type(value), fields | getattr(value, "__dict__", {})))
        case _:
            text = repr(value)
            known = type(value).__module__.partition(".")[0] in KNOWN and " at 0x" not in text
            # An object with a name is a function, perhaps a user's that NumPy or JAX has wrapped.
            known = type(value) in PLAIN or (known and not hasattr(value, "__name__"))
            yield text.encode() if known else _nothing()
    yield b","


def _is_importable(value: Any) -> bool:
    """Whether a function or class is in its module by its name, and not made anew by each call."""
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    try:
        return operator.attrgetter(value.__qualname__)(module) is value
    except AttributeError:
        return False


def _nothing() -> bytes:
    """Random bytes, so that a fingerprint with them equals no other."""
    return uuid.uuid4().bytes
