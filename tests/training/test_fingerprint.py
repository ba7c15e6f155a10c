"""Fingerprints of functions: equal for equal programs, apart for anything that changes a result."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from lora_jax.methods.decompositions import eigh, qr
from lora_jax.training.fingerprint import fingerprint

X = jax.ShapeDtypeStruct((3,), jnp.float32)


def scaled(rate):
    """The identity with a derivative that a number of Python's is read in."""

    @jax.custom_vjp
    def f(x):
        return x

    f.defvjp(lambda x: (x, None), lambda _, g: (rate * g,))
    return f


def looped(number):
    def body(carry, x):
        return carry * number, x

    return lambda x: jax.lax.scan(body, x, None, length=2)[0]


MAKERS = {
    "a number": lambda n: lambda x: x * n,
    "a number in a compiled part": lambda n: jax.jit(lambda x: x * n),
    "a number in a loop": looped,
    "a branch": lambda n: lambda x: jnp.sin(x) if n > 0.1234567891 else x,
    "an array": lambda n: lambda x: x + np.full(3, n, np.float32),
    "an array in a compiled part": lambda n: jax.jit(lambda x: x + jnp.full(3, n)),
    "a shape": lambda n: lambda x: jnp.pad(x, (0, 1 + (n > 0.1234567891))),
    "a derivative": lambda n: jax.grad(lambda x: scaled(n)(x).sum()),
    "a key": lambda n: lambda x: x + jax.random.normal(jax.random.key(int(1e9 * n)), (3,)),
}
NUMBER, NEAR = 0.1234567, 0.12345671
"""Two that float32 tells apart."""


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_read_while_tracing_counts_by_value(name):
    make = MAKERS[name]
    near = 0.1234568 if name != "a key" else NEAR
    near = 0.2 if name in ("a branch", "a shape") else near
    assert fingerprint(make(NUMBER), X) == fingerprint(make(NUMBER), X)
    assert fingerprint(make(NUMBER), X) != fingerprint(make(near), X)


def test_how_keys_are_drawn_from_counts():
    found = []
    for setting in (True, False, True):
        with jax.threefry_partitionable(setting):
            found.append(fingerprint(lambda key: jax.random.bits(key, (3,)), jax.random.key(0)))
    assert found[0] == found[2] != found[1]


def test_a_derivative_that_is_not_taken_does_not_count():
    assert fingerprint(scaled(NUMBER), X) == fingerprint(scaled(0.2), X)


def test_a_rule_for_stacks_does_not_count():
    matrix = jnp.eye(3)
    assert fingerprint(eigh, matrix) == fingerprint(eigh, matrix) != fingerprint(qr, matrix)


def test_what_is_an_argument_does_not_count():
    one, other = (lambda x, n: x * n), (lambda value, rate: value * rate)
    assert fingerprint(one, X, 0.5 * jnp.ones(())) == fingerprint(other, X, jnp.zeros(()))
    assert fingerprint(one, X, jnp.ones(())) != fingerprint(one, X, jnp.ones(3))


def test_names_of_arguments_count():
    """Trees of one shape and other names are not each other's factors."""
    assert fingerprint(lambda t: t["a"], {"a": X}) != fingerprint(lambda t: t["b"], {"b": X})


# -- functions that are called back ---------------------------------------------------------------


def host(x, rate=1.0):
    return np.asarray(x) * np.float32(rate)


@dataclasses.dataclass(frozen=True)
class Host:
    """With what neither `==` nor `repr` tells of, one of them no field."""

    rate: float = dataclasses.field(compare=False, repr=False)
    given: dataclasses.InitVar[float]

    def __post_init__(self, given):
        object.__setattr__(self, "more", given)

    def __call__(self, x):
        return host(x, self.rate + self.more)  # type: ignore[attr-defined]

    @staticmethod
    def plain(x):
        return host(x)


@jax.tree_util.register_pytree_node_class
class Rated:
    """A node whose aux data do not say what they are."""

    def __init__(self, x, of):
        self.x, self.of = x, of

    def tree_flatten(self):
        return (self.x,), self.of

    @classmethod
    def tree_unflatten(cls, of, children):
        return cls(*children, of)


def call(function, x, callback=jax.pure_callback):
    return callback(function, X, x)


BY_VALUE = {
    "a partial": lambda n: functools.partial(host, rate=n),
    "an object": lambda n: Host(n, 1.0),
    "an object's own attribute": lambda n: Host(1.0, n),
    "a bound method": lambda n: Host(n, 1.0).__call__,
    "a partial of a bound method": lambda n: functools.partial(Host(1.0, n).__call__),
}
OF_NOTHING = {
    "a closure": lambda n: lambda x: host(x, n),
    "a default": lambda n: lambda x, rate=n: host(x, rate),
    "NumPy's of a closure": lambda n: np.frompyfunc(lambda x: n * x, 1, 1),
    "JAX's of an object": lambda n: jax.jit(Host(n, 1.0)),
    "an array of objects": lambda n: functools.partial(host, rate=np.array([n], object)),
}


@pytest.mark.parametrize("function", [host, Host.plain])
def test_a_function_of_a_module_is_itself(function):
    assert fingerprint(lambda x: call(function, x), X) == fingerprint(
        lambda x: call(function, x), X
    )
    impure = [fingerprint(lambda x: call(function, x, io_callback), X) for _ in range(2)]
    assert impure[0] != impure[1]


@pytest.mark.parametrize("name", BY_VALUE)
def test_what_a_function_binds_counts_by_value(name):
    one, same, other = (
        fingerprint(functools.partial(call, BY_VALUE[name](n)), X) for n in (0.5, 0.5, 0.25)
    )
    assert one == same != other


@pytest.mark.parametrize("name", OF_NOTHING)
def test_a_function_made_by_another_is_equal_to_nothing(name):
    one, other = (fingerprint(functools.partial(call, OF_NOTHING[name](n)), X) for n in (0.5, 0.25))
    assert one != other
    assert fingerprint(functools.partial(call, OF_NOTHING[name](0.5)), X) != one


def rated(tree):
    return host(tree.x, tree.of.rate)


def test_trees_that_a_function_is_called_back_with_count_by_value():
    def prints(rate):
        return fingerprint(lambda x: call(rated, Rated(x, Host(rate, 1.0))), X)

    assert prints(0.5) == prints(0.5) != prints(0.25)
