"""Inverses; and no stack of matrices goes to LAPACK, where CPUs may wait for ever."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import own_code
import pytest

import variants
from lora_jax.contract import toys
from lora_jax.methods import initialization
from lora_jax.methods.decompositions import inverse, qr
from lora_jax.transform.adapted_weight import with_shared
from lora_jax.transform.placement import shared_factors

STACKS = re.compile(r"lapack_\w+\(.*tensor<[2-9]x\d+x\d+xf")


@pytest.mark.parametrize("size", [1, 2, 5, 32])
def test_inverses_and_their_derivatives(size, x64):
    random = np.random.RandomState(size)
    x = random.standard_normal((2, 3, size, size))
    definite = np.eye(size) - 10 * (x - x.swapaxes(-1, -2))
    triangular = np.eye(size) / 2 + np.triu(x / 10, 1)
    for matrices in (definite, triangular):
        wanted = np.linalg.inv(matrices)
        np.testing.assert_allclose(inverse(jnp.asarray(matrices)), wanted, atol=1e-11)
        found, change = jax.jvp(inverse, (jnp.asarray(matrices),), (jnp.asarray(x),))
        np.testing.assert_allclose(found, wanted, atol=1e-11)
        np.testing.assert_allclose(change, -wanted @ x @ wanted, rtol=1e-9, atol=1e-9)


def text_of(function, *arguments):
    return jax.jit(function).lower(*arguments).as_text()


def test_stacks_are_seen():
    x = jnp.ones((3, 4, 4))
    assert STACKS.search(text_of(jax.vmap(jnp.linalg.qr), x))
    assert STACKS.search(text_of(jnp.linalg.eigh, x))
    assert STACKS.search(text_of(jnp.linalg.svd, x))
    assert STACKS.search(text_of(jnp.linalg.solve, x, x))
    assert STACKS.search(text_of(jnp.linalg.inv, x))
    assert not STACKS.search(text_of(jax.vmap(qr), x))
    np.testing.assert_array_equal(jax.vmap(qr)(x)[0], jnp.stack([jnp.linalg.qr(x[0])[0]] * 3))


def factorisations(variant):
    """What the start and a step of a variant give to LAPACK, for a stack of three matrices."""
    base = toys.base(variant, jnp.float32)

    def start_and_step(key, base, x):
        shared = variant.init_shared(key, [base.shape], base.dtype)
        factors = with_shared(variant.init(key, base), shared_factors(variant, shared))
        y, pull_back = jax.vjp(
            lambda trainable: variant.dot(x, base, factors._replace(trainable=trainable)),
            factors.trainable,
        )
        return variant.precondition(*pull_back(y), factors)

    several = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), base)
    x = jnp.ones((2, base.shape[0]), base.dtype)
    three = jax.vmap(start_and_step, in_axes=(0, 0, None))
    return text_of(three, jax.random.split(jax.random.key(0), 3), several, x)


def test_no_method_gives_lapack_stacks():
    starts = *initialization.DRAWN, *initialization.SUBTRACTED, "pissa_niter_2"
    kinds = [variants.make("lora", initialization=start) for start in starts]
    kinds += [variants.make(name) for name in own_code.names() if variants.find(name).adapts]
    assert [kind for kind in kinds if STACKS.search(factorisations(kind))] == []
