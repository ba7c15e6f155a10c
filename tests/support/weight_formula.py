"""All that a method makes of one weight, beside the same weight written out in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import zoo.check as check

from lora_jax.variant import Base, Factors


def base_of(shape, seed=0, dtype=jnp.float64):
    return Base(jnp.asarray(np.random.RandomState(seed).randn(*shape).astype(dtype)), "io")


init = jax.jit(lambda variant, base: variant.init(jax.random.key(1), base), static_argnums=0)


def factors_of(variant, base, seed=1):
    trainable, constants = init(variant, base)
    random = np.random.RandomState(seed)
    moved = {n: x + random.randn(*x.shape) for n, x in jax.tree.map(np.asarray, trainable).items()}
    return Factors(moved, constants)


@functools.partial(jax.jit, static_argnums=0)
def uses(variant, base, factors, x, z, rows):
    products = variant.dot(x, base, factors), variant.dot_t(z, base, factors)
    return variant.weight(base, factors), *products, variant.take(rows, base, factors)


def assert_is_weight(variant, base, factors, w):
    """All uses of a matrix are those of `w`."""
    x, z = (
        np.random.RandomState(i).randn(1, 2, n) for i, n in zip((3, 4), base.shape, strict=True)
    )
    rows, w = np.array([[0, base.shape[0] - 1], [1, 1]]), np.asarray(w)
    check.assert_close(
        uses(variant, base, factors, x, z, rows), (w, x @ w, z @ w.T, w[rows]), 1e-12
    )
