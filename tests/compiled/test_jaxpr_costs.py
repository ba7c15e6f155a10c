"""Costs of traced functions: FLOPs by closed forms, reads and writes counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from lora_jax.compiled.jaxpr_costs import product_flops, traffic_bytes

BATCH, FACTOR = jnp.ones((2, 3, 5)), jnp.ones((5, 7))
ONE = 2 * (2 * 3) * 5 * 7


def rounds(x, n):
    return jax.lax.scan(lambda y, _: (y @ FACTOR @ FACTOR.T, None), x, None, length=n)[0]


@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (lambda x: x @ FACTOR, ONE),
        (lambda x: jnp.sin(x) + 1, 0),
        (lambda x: jnp.einsum("bik,bjk->bij", x, x), 2 * 2 * 3 * 3 * 5),
        (lambda x: jax.jit(lambda y: y @ FACTOR)(x), ONE),
        (lambda x: rounds(x, 4), 4 * 2 * ONE),
        (lambda x: jax.lax.cond(x[0, 0, 0] > 0, lambda y: rounds(y, 3), lambda y: y, x), 6 * ONE),
        (jax.grad(lambda x: jnp.sum((x @ FACTOR) ** 2)), 2 * ONE),
    ],
)
def test_products_are_counted_as_often_as_they_run(function, flops):
    assert product_flops(jax.make_jaxpr(function)(BATCH).jaxpr) == flops


X, W = jnp.ones((8, 16)), jnp.ones((16, 4))
SQUARE = jnp.ones((4, 4))


def loop(x):
    return jax.lax.scan(lambda x, _: (x @ SQUARE, None), x, length=5)[0]


def branches(x):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x + 1.0, x)


@pytest.mark.parametrize(
    ("function", "arguments", "numbers"),
    [
        (lambda x, w: x @ w, (X, W), 8 * 16 + 16 * 4 + 8 * 4),
        (lambda x: jnp.exp(jnp.sin(x) * 2.0), (X,), 2 * 8 * 16),  # one pass
        (lambda x: jax.lax.reduce_precision(jnp.sin(x), 8, 7), (X,), 2 * 8 * 16),
        # The activation is written for the product, which reads it.
        (lambda x, w: jnp.sin(x) @ w, (X, W), 3 * 8 * 16 + 16 * 4 + 8 * 4),
        # The product's result is read by the pass that follows.
        (lambda x, w: jnp.sin(x @ w), (X, W), 8 * 16 + 16 * 4 + 3 * 8 * 4),
        (lambda x: x.sum(), (X,), 8 * 16 + 1),
        (lambda x: x.argmax(), (SQUARE.ravel(),), 4 * 4 + 1),
        (loop, (SQUARE,), 5 * 3 * 16),
        (lambda x: x[2:4], (X,), 2 * 2 * 16),
        (lambda x: jax.lax.dynamic_slice(x, (1, 0), (2, 16)), (X,), 2 * 2 * 16),
        (jax.jit(lambda x, w: x @ w), (X, W), 8 * 16 + 16 * 4 + 8 * 4),
    ],
)
def test_what_is_read_and_written(function, arguments, numbers):
    assert traffic_bytes(jax.make_jaxpr(function)(*arguments).jaxpr) == 4 * numbers


def test_the_longer_branch_counts():
    both = traffic_bytes(jax.make_jaxpr(branches)(SQUARE).jaxpr)
    picks = traffic_bytes(jax.make_jaxpr(lambda x: x[0, 0] > 0)(SQUARE).jaxpr)
    assert 0 <= both - picks - 4 * 3 * 16 <= 8  # and the branch's number
