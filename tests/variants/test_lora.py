"""LoRA against its closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lora_jax as lj
from lora_jax.methods.products import product
from lora_jax.variant import Base, Factors
from variants.lora import LoRA
from variants.lora_fa import LoRAFA

SCALES = {"alpha/rank": lambda a, r: a / r, "alpha/sqrt(rank)": lambda a, r: a / math.sqrt(r)}


def base_of(shape, seed=0):
    return Base(jnp.asarray(np.random.RandomState(seed).randn(*shape)), "io")


init = jax.jit(lambda variant, key, base: variant.init(key, base), static_argnums=0)


def random_factors(variant, base, seed=1):
    """Factors as `init` makes them, then away from zero."""
    factors = init(variant, jax.random.key(seed), base)
    random = np.random.RandomState(seed)
    moved = jax.tree.map(lambda x: np.asarray(x) + random.randn(*x.shape), factors.trainable)
    return Factors(jax.tree.map(jnp.asarray, moved), factors.constants)


# -- the update --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, rank, alpha, scale",
    [
        ((6, 9), 1, 16.0, "alpha/rank"),
        ((9, 6), 3, 16.0, "alpha/sqrt(rank)"),
        ((9, 9), 4, 0.5, "alpha/rank"),
        ((6, 9), 6, -2.0, "alpha/sqrt(rank)"),
    ],
)
def test_the_update_is_scale_times_b_a(shape, rank, alpha, scale, x64):
    base = base_of(shape)
    variant = LoRA(rank=rank, alpha=alpha, scale=scale)
    factors = random_factors(variant, base)
    a, b = (np.asarray(factors.trainable[name]) for name in "ab")
    expected = np.asarray(base.value) + SCALES[scale](alpha, rank) * np.einsum("ri,ro->io", a, b)
    weight = jax.jit(variant.weight)(base, factors)
    np.testing.assert_allclose(weight, expected, atol=1e-13)
    assert variant.count(shape) == a.size + b.size == rank * sum(shape)


# -- the start ---------------------------------------------------------------------------------


def test_rows_and_layers_are_independent():
    def forward(params, x):
        x = lax.scan(lambda x, w: (x @ w, None), x, params["w"])[0]
        return x @ params["u"] @ params["v"]

    params = {"w": (6, 200, 200), "u": (200, 200), "v": (200, 200)}
    params = {name: np.zeros(shape, np.float32) for name, shape in params.items()}
    given = jax.random.key(5), params, np.zeros((2, 200), np.float32)
    everything, only = (lj.adapt(forward, LoRA(rank=4), paths) for paths in ("w|u|v", "v"))
    (started, _), (alone, _) = jax.jit(lambda *x: (everything.init(*x), only.init(*x)))(*given)
    a = {path: np.asarray(f["a"]) for path, f in started["adapters"].items()}
    rows = np.concatenate([a["w"].reshape(24, 200), a["u"], a["v"]]) * math.sqrt(3 * 200)
    correlations = rows @ rows.T / 200 - np.eye(32)
    assert np.abs(correlations).max() < 5 / math.sqrt(200)
    # a weight's start depends on its path alone, not on what else is adapted
    np.testing.assert_array_equal(alone["adapters"]["v"]["a"], a["v"])


# -- ranks that differ -------------------------------------------------------------------------


@pytest.mark.parametrize("rank, rows, scale", [(3, 5, "alpha/sqrt(rank)"), (5, 5, "alpha/rank")])
def test_a_masked_rank_is_exactly_the_smaller_rank(rank, rows, scale, x64):
    base = base_of((7, 9))
    small = LoRA(rank=rank, scale=scale)
    large = LoRA(rank=rank, scale=scale, max_rank=rows)
    key = jax.random.key(0)
    started, plain = init(large, key, base), init(small, key, base)
    a = np.asarray(started.trainable["a"])
    np.testing.assert_array_equal(a[:rank], plain.trainable["a"])
    assert not a[rank:].any()
    assert large.count((7, 9)) == small.count((7, 9))

    full = random_factors(large, base)  # hidden rows hold numbers too
    cut = {n: np.asarray(f)[:rank] for n, f in full.trainable.items()}
    cut = Factors(cut, plain.constants)
    x, z, ids = np.ones((4, 7)), np.ones((4, 9)), np.arange(7)

    @jax.jit
    def outputs(full, cut):
        def of(variant, factors):
            def run(trainable):
                each = Factors(trainable, factors.constants)
                dots = variant.dot(x, base, each), variant.dot_t(z, base, each)
                return *dots, variant.take(ids, base, each), variant.weight(base, each)

            got, pull = jax.vjp(run, factors.trainable)
            return got, pull(got)[0]

        return of(large, full), of(small, cut)

    (got, gradient), (expected, gradient_cut) = outputs(full, cut)
    gradient = jax.tree.map(np.asarray, gradient)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-13)
    for name in "ab":
        np.testing.assert_allclose(gradient[name][:rank], gradient_cut[name], atol=1e-11)
        assert not gradient[name][rank:].any()


# -- the product -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outer, inputs, rank, outputs",
    [
        ((), 5, 1, 3),
        ((1,), 4, 4, 4),
        ((7,), 3, 2, 11),
        ((2, 3), 5, 1, 3),
        ((2, 1, 4), 4, 4, 4),
        ((0, 3), 3, 2, 11),
        ((2, 2, 2, 2), 3, 2, 11),
    ],
)
def test_the_product_is_the_einsum(outer, inputs, rank, outputs, x64):
    random = np.random.RandomState(0)
    x, a, b = (
        jnp.asarray(random.randn(*shape))
        for shape in ((*outer, inputs), (rank, inputs), (rank, outputs))
    )

    def einsum(x, a, b):
        return jnp.einsum("...i,ri,ro->...o", x, a, b)

    cotangent = jnp.asarray(random.randn(*outer, outputs))

    @jax.jit
    def both(x, a, b, cotangent):
        pairs = [jax.vjp(function, x, a, b) for function in (product, einsum)]
        return [(y, *pull(cotangent)) for y, pull in pairs]

    got, expected = both(x, a, b, cotangent)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("outer", [(64,), (4, 16), (2, 4, 8)])
def test_no_pass_of_the_product_transposes_activations(outer):
    inputs, rank, outputs = 32, 2, 24
    x = jnp.ones((*outer, inputs))
    args = x, jnp.ones((rank, inputs)), jnp.ones((rank, outputs))
    step = jax.make_jaxpr(jax.grad(lambda *args: (product(*args) ** 2).sum(), argnums=(1, 2)))
    moved = [
        eqn.outvars[0].aval.size
        for eqn in step(*args).jaxpr.eqns
        if eqn.primitive.name == "transpose"
    ]
    assert max(moved, default=0) <= rank * 64  # the short side only


# -- LoRA-FA --------------------------------------------------------------------------------------


def step_of_two_layers(variant, tokens=256, width=128):
    """A layer behind a frozen one: the gradient, and the residuals that are as long as a batch."""

    def forward(params, x):
        return (x @ params["w"]) @ params["v"]

    shapes = {"w": (width, width), "v": (width, width)}
    params = {n: jax.ShapeDtypeStruct(shape, jnp.float32) for n, shape in shapes.items()}
    x = jax.ShapeDtypeStruct((tokens, width), jnp.float32)
    adapted = lj.adapt(forward, variant, ["w", "v"])
    trainable, frozen = jax.eval_shape(adapted.init, jax.random.key(0), params, x)

    def loss(trainable, frozen, x):
        return jnp.sum(adapted.apply(trainable, frozen, x))

    flops = jax.jit(jax.grad(loss)).lower(trainable, frozen, x).compile().cost_analysis()["flops"]
    pull = jax.eval_shape(
        lambda t, f, x: jax.vjp(lambda t: loss(t, f, x), t)[1], trainable, frozen, x
    )
    kept = [leaf.shape for leaf in jax.tree.leaves(pull) if tokens in leaf.shape]
    return flops, sum(sum(shape) - tokens for shape in kept)


def test_lora_fa_keeps_short_residuals_and_computes_less():
    rank, width, tokens = 8, 128, 256
    (flops, kept), (flops_fa, kept_fa) = (
        step_of_two_layers(kind(rank=rank)) for kind in (LoRA, LoRAFA)
    )
    assert kept >= 2 * width  # the input of each layer, for the gradient of its A
    assert kept_fa <= 2 * rank  # of each layer, x A^T
    # The gradients of both A, and for the first layer's that of x A^T, which nothing else needs.
    saved = 3 * 2 * tokens * width * rank
    assert flops - flops_fa == pytest.approx(saved, rel=0.05)
