"""Fingerprints of functions: equal for equal programs, apart for anything that changes a result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lora_jax.fingerprint import fingerprint

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


def test_what_is_an_argument_does_not_count():
    one, other = (lambda x, n: x * n), (lambda value, rate: value * rate)
    assert fingerprint(one, X, 0.5 * jnp.ones(())) == fingerprint(other, X, jnp.zeros(()))
    assert fingerprint(one, X, jnp.ones(())) != fingerprint(one, X, jnp.ones(3))


def test_names_of_arguments_count():
    """Trees of one shape and other names are not each other's factors."""
    assert fingerprint(lambda t: t["a"], {"a": X}) != fingerprint(lambda t: t["b"], {"b": X})


def test_a_function_that_is_called_back_is_equal_to_nothing():
    def back(number):
        return lambda x: jax.pure_callback(lambda y: number * np.asarray(y), X, x)

    assert fingerprint(back(1.0), X) != fingerprint(back(1.0), X)
