"""FLOPs of traced products, by closed forms."""

import jax
import jax.numpy as jnp
import pytest

from lora_jax.compiled.jaxpr_costs import product_flops

X, W = jnp.ones((2, 3, 5)), jnp.ones((5, 7))
ONE = 2 * (2 * 3) * 5 * 7


def rounds(x, n):
    return jax.lax.scan(lambda y, _: (y @ W @ W.T, None), x, None, length=n)[0]


@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (lambda x: x @ W, ONE),
        (lambda x: jnp.sin(x) + 1, 0),
        (lambda x: jnp.einsum("bik,bjk->bij", x, x), 2 * 2 * 3 * 3 * 5),
        (lambda x: jax.jit(lambda y: y @ W)(x), ONE),
        (lambda x: rounds(x, 4), 4 * 2 * ONE),
        (lambda x: jax.lax.cond(x[0, 0, 0] > 0, lambda y: rounds(y, 3), lambda y: y, x), 6 * ONE),
        (jax.grad(lambda x: jnp.sum((x @ W) ** 2)), 2 * ONE),
    ],
)
def test_products_are_counted_as_often_as_they_run(function, flops):
    assert product_flops(jax.make_jaxpr(function)(X).jaxpr) == flops
