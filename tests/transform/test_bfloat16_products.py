"""Products of operands rounded to bfloat16, and the same in their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lora_jax as lj
import variants
from lora_jax.transform.bfloat16_products import bfloat16_products


def low(array):
    """The array rounded to bfloat16, in float64."""
    return np.asarray(jnp.asarray(array).astype(jnp.bfloat16), np.float64)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("has_unit", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_product_and_its_gradient_round_their_operands(compiled, has_unit):
    w, x, g = normal(0, 8, 3), normal(1, 5, 8), normal(2, 5, 3)
    product = bfloat16_products(lambda w, x: x @ w, has_unit)
    product = jax.jit(product) if compiled else product
    np.testing.assert_allclose(product(w, x), low(x) @ low(w), rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda w: (product(w, x) * g).sum())(w)
    np.testing.assert_allclose(gradient, low(x).T @ low(g), rtol=1e-5, atol=1e-5)


def looped(weights, x):
    """Products in a scanned and rematerialised layer, a branch, a loop, and two custom rules.

    The mask puts a Python `True` into the program, which has no dtype.
    """

    def layer(x, weight):
        return jax.checkpoint(lambda x: jnp.tanh(x @ weight))(x), None

    x, _ = jax.lax.scan(layer, x, weights)
    x = jnp.where(jnp.isfinite(x) & True, x, 0.0)
    x = jax.lax.cond(x[0, 0] > 0, lambda x: x @ x.T, lambda x: 2 * x @ x.T, x)
    x = jax.nn.softmax(x) + squares(x)
    fixed = jax.lax.stop_gradient(x)
    end = jax.lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(c[1] @ c[1])), (0, fixed)
    )
    return x @ end[1]


@jax.custom_vjp
def squares(x):
    return x @ x


squares.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))


def dots(program):
    """The dtypes of the operands of every product in a lowered program."""
    lines = [line for line in program.splitlines() if "dot_general" in line]
    return [line.count("bf16>") for line in lines]


def test_every_product_is_rounded_wherever_it_is():
    weights, x = normal(3, 3, 8, 8), normal(4, 5, 8)

    def loss(weights, function):
        return jnp.square(function(weights, x)).sum()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    found = dots(gradient.lower(weights, bfloat16_products(looped)).as_text())
    plain = dots(gradient.lower(weights, looped).as_text())
    assert set(found) == {2} and set(plain) == {0} and len(found) >= len(plain) > 10
    exact = gradient(weights, looped)
    error = np.abs(gradient(weights, bfloat16_products(looped)) - exact).max()
    assert 0 < error < 0.1 * np.abs(exact).max()


ORDERS = (
    "io,bi->bo", "oi,bi->bo", "bi,io->ob", "ib,io->bo", "bti,io->bto", "bti,oi->bot",
    "io,bit->obt", "bthd,bshd->bhts", "bhts,bshd->bthd", "bhtd,bhds->bths", "i,i->", "i,o->io",
    "bi,bi->b", "bij,jik->kb",
)  # fmt: skip


@pytest.mark.parametrize("has_unit", [False, True])
def test_products_and_gradients_are_rounded_in_every_order_of_axes(has_unit):
    def operands(spec, seed):
        terms = spec.split("->")[0].split(",")
        sizes = dict(zip("bhijkostd", (2, 3, 8, 5, 4, 6, 9, 7, 8), strict=True))
        return [normal(seed + n, *(sizes[axis] for axis in t)) for n, t in enumerate(terms)]

    def run(spec, left, right):
        product = bfloat16_products(lambda pair, _: jnp.einsum(spec, *pair), has_unit)
        # Operands that are computed, and results that go on: XLA reorders them in a program.
        out, pull = jax.vjp(lambda *pair: product(pair, None), jnp.tanh(left), jnp.tanh(right))
        return jnp.tanh(out), *pull(jnp.sin(out))

    pairs = {spec: operands(spec, 2 * n) for n, spec in enumerate(ORDERS)}
    found = jax.jit(lambda pairs: {spec: run(spec, *pair) for spec, pair in pairs.items()})(pairs)
    for spec, pair in pairs.items():
        left, right = (low(np.tanh(each)) for each in pair)
        (a, b), c = spec.split("->")[0].split(","), spec.split("->")[1]
        out = np.einsum(spec, left, right)
        above = low(jnp.sin(jnp.asarray(out, jnp.float32)))
        expected = (
            np.tanh(out), np.einsum(f"{c},{b}->{a}", above, right),
            np.einsum(f"{a},{c}->{b}", left, above),
        )  # fmt: skip
        for mine, theirs in zip(found[spec], expected, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=0.02 * np.abs(theirs).max(), err_msg=spec)
            assert np.median(np.abs(mine - theirs)) < 1e-5 * np.abs(theirs).max(), spec


def test_other_dtypes_are_left_and_trials_can_be_batched(x64):
    matrices = normal(5, 4, 3, 3).astype(jnp.float64)
    product = bfloat16_products(lambda w, n: (w @ w) * n.astype(w.dtype))
    np.testing.assert_array_equal(product(matrices[0], jnp.int32(3)), matrices[0] @ matrices[0] * 3)
    low_product = bfloat16_products(lambda w, x: (x @ w).sum())
    many = jax.jit(jax.vmap(jax.grad(low_product), in_axes=(0, None)))
    singles, x = matrices.astype(jnp.float32), jnp.ones((2, 3), jnp.float32)
    expected = np.stack([jax.grad(low_product)(each, x) for each in singles])
    np.testing.assert_array_equal(many(singles, x), expected)


DEFAULT, IN_SIX = jax.lax.DotAlgorithmPreset.DEFAULT, jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X6
ASKED = {None: 0, "default": 0, DEFAULT: 0, "high": 1, "highest": 1, ("default", "highest"): 1}


@pytest.mark.parametrize(("precision", "kept"), [*ASKED.items(), (IN_SIX, 1)], ids=str)
def test_a_product_that_asks_for_a_precision_keeps_it_and_so_does_its_gradient(precision, kept):
    w, x = normal(0, 8, 3), normal(1, 5, 8)

    def gradient(product):
        return jax.jit(jax.grad(lambda w: jnp.sin(product(w, x)).sum()))

    def product(w, x):
        return jnp.matmul(x, w, precision=precision)

    found = gradient(bfloat16_products(product)).lower(w).as_text()
    assert dots(found) == ([0, 0] if kept else [2, 2])
    if kept and precision is not IN_SIX:  # which no CPU has
        exact = np.asarray(x, float).T @ np.cos(np.asarray(x, float) @ np.asarray(w, float))
        rounded = gradient(bfloat16_products(product))(w)
        np.testing.assert_allclose(rounded, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "kept"),
    [
        ("lora", {"rank": 2}, 0),
        ("dora", {"rank": 2}, 3),  # A W, A A^T, and that by B
        ("hra", {"rank": 2}, 2),
        ("oft", {"block_size": 4}, 1),
        ("boft", {}, 1),
    ],
)
def test_small_products_that_make_norms_and_rotations_are_not_rounded(name, settings, kept):
    variant, base = variants.make(name, **settings), lj.Base(normal(0, 8, 6), "io")
    factors = variant.init(jax.random.key(0), base)
    product = bfloat16_products(lambda factors, x: variant.dot(x, base, factors))
    found = dots(jax.jit(product).lower(factors, normal(1, 5, 8)).as_text())
    assert found.count(0) == kept and found.count(2) == len(found) - kept > 0
