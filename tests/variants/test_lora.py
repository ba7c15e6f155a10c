"""LoRA against its closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from scipy import stats

import lora_jax as lj
from lora_jax.methods.products import product
from lora_jax.variant import Base, Factors
from variants.lora import LoRA

SURPRISE = 1e-3  # the p-value below which one of a few tests of a distribution is no accident
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


def test_the_scale_is_a_constant_and_traced(x64):
    base, variant = base_of((6, 9)), LoRA(rank=2, alpha=4.0)
    trainable, constants = random_factors(variant, base)
    assert float(constants["scale"]) == 2.0
    weight = jax.vmap(lambda s: variant.weight(base, Factors(trainable, {"scale": s})))
    once, twice = np.asarray(jax.jit(weight)(np.array([1.0, 2.0]))) - np.asarray(base.value)
    np.testing.assert_allclose(twice, 2 * once, atol=1e-13)


# -- the start ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rank, shape, dtype", [(8, (300, 20), jnp.float32), (30, (1000, 31), jnp.bfloat16)]
)
def test_kaiming_uniform_fills_its_interval(rank, shape, dtype):
    base = Base(np.zeros(shape, dtype), "io")
    trainable = init(LoRA(rank=rank), jax.random.key(3), base).trainable
    a = np.asarray(trainable["a"])
    bound = 1 / math.sqrt(shape[0])
    assert a.shape == (rank, shape[0]) and a.dtype == np.float32
    assert 0.99 * bound < np.abs(a).max() <= bound
    assert stats.kstest(a.ravel() / bound, "uniform", args=(-1, 2)).pvalue > SURPRISE
    assert trainable["b"].shape == (rank, shape[1]) and not np.asarray(trainable["b"]).any()


@pytest.mark.parametrize("rank, shape", [(8, (300, 20)), (30, (1000, 31))])
def test_gaussian_has_the_standard_deviation_one_over_rank(rank, shape):
    variant = LoRA(rank=rank, initialization="gaussian")
    base = Base(np.zeros(shape, np.float32), "io")
    a = np.asarray(init(variant, jax.random.key(4), base).trainable["a"])
    assert stats.kstest(a.ravel() * rank, "norm").pvalue > SURPRISE


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


# -- dropout -----------------------------------------------------------------------------------


def dropped_inputs(rate, count=4000, keep=None):
    """What the adapter of an identity sees of ones, for many keys: its output is its input."""
    size = 4
    variant = LoRA(rank=size, alpha=size, dropout=rate)
    x = np.ones((5, size), np.float32)

    @jax.jit
    def run(keys):
        base = Base(jnp.full((size, size), 3.0), "io")
        constants = variant.init(jax.random.key(0), base).constants
        if keep is not None:
            constants["keep"] = jnp.asarray(keep)
        factors = Factors({"a": jnp.eye(size), "b": jnp.eye(size)}, constants)
        y = jax.vmap(lambda key: variant.dot(x, base, factors, dropout_key=key))(keys)
        return y - base.dot(x)[None]

    return np.asarray(run(jax.random.split(jax.random.key(1), count)))


@pytest.mark.parametrize("rate", [0.1, 0.9])
def test_dropout_keeps_the_expectation_and_drops_the_adapters_input_only(rate):
    seen = dropped_inputs(rate)
    kept = seen > 1e-6
    np.testing.assert_allclose(seen[kept], 1 / (1 - rate), rtol=1e-5)
    deviations = (kept.mean(0) - (1 - rate)) / math.sqrt(rate * (1 - rate) / len(seen))
    assert np.abs(deviations).max() < 4.5  # 20 positions
    assert abs(np.corrcoef(kept.reshape(len(kept), -1).T) - np.eye(20)).max() < 0.1


def test_the_keep_probability_is_read_from_the_constants():
    assert abs((dropped_inputs(0.5, keep=0.9) > 1e-6).mean() - 0.9) < 0.01


def test_dropout_needs_both_a_rate_and_a_key():
    base = base_of((6, 9))
    for rate, key in ((0.0, jax.random.key(0)), (0.5, None)):
        variant = LoRA(rank=2, dropout=rate)
        factors = random_factors(variant, base)
        x = np.asarray(base.value).T

        def both(x, base, factors, key, variant=variant):
            y = variant.dot(x, base, factors, dropout_key=key)
            return y, variant.weight(base, factors)

        y, weight = jax.jit(both)(x, base, factors, key)
        np.testing.assert_allclose(y, x @ np.asarray(weight), atol=1e-4)


def test_every_layer_and_every_use_of_a_weight_has_its_own_dropout():
    def forward(params, x):
        ys = lax.scan(lambda _, w: (None, x @ w), None, params["w"])[1]
        return [*ys, x @ params["v"], x @ params["v"]]

    params = {"w": np.zeros((3, 16, 16), np.float32), "v": np.zeros((16, 16), np.float32)}
    x, identity = np.ones((8, 16), np.float32), np.eye(16, dtype=np.float32)
    adapted = lj.adapt(forward, LoRA(rank=16, alpha=16.0, dropout=0.5), ["w", "v"])

    @jax.jit
    def apply(key):
        trainable, frozen = adapted.init(jax.random.key(0), params, x)
        trainable = jax.tree.map(lambda leaf: jnp.broadcast_to(identity, leaf.shape), trainable)
        return adapted.apply(trainable, frozen, x, dropout_key=key)

    outputs = [np.asarray(y) > 0 for y in (*apply(jax.random.key(1)), *apply(jax.random.key(2)))]
    agreement = np.array([[(a == b).mean() for a in outputs] for b in outputs])
    assert np.abs(agreement - 0.5)[~np.eye(10, dtype=bool)].max() < 0.2  # 128 coins each
    again = [np.asarray(y) > 0 for y in apply(jax.random.key(1))]
    np.testing.assert_array_equal(again, outputs[:5])


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


def test_patterns_set_rank_alpha_and_layers(x64):
    def forward(params, x):
        x = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["w"])[0]
        return jnp.tanh(x @ params["v"]) @ params["u"]

    random = np.random.RandomState(0)
    shapes = {"w": (4, 6, 6), "v": (6, 8), "u": (8, 5)}
    params = {name: jnp.asarray(random.randn(*shape)) for name, shape in shapes.items()}
    x = jnp.asarray(random.randn(3, 6))
    targets = {
        lj.layers("w", 0): LoRA(rank=1, alpha=3.0),
        lj.layers("w", slice(2, None)): LoRA(rank=4, alpha=2.0),
        "v": LoRA(rank=3, alpha=6.0, scale="alpha/sqrt(rank)"),
        "u": LoRA(rank=2),
    }
    adapted = lj.adapt(forward, targets=targets)
    trainable, frozen = jax.jit(adapted.init)(jax.random.key(0), params, x)
    trainable = jax.tree.map(lambda leaf: jnp.asarray(random.randn(*leaf.shape)), trainable)

    expected = {name: np.array(value) for name, value in params.items()}
    factors = {
        p: {n: np.asarray(f) for n, f in each.items()} for p, each in trainable["adapters"].items()
    }
    for layer, rank, scale in ((0, 1, 3.0), (2, 4, 0.5), (3, 4, 0.5)):
        a, b = (factors["w"][name][layer, :rank] for name in "ab")
        expected["w"][layer] += scale * a.T @ b
    for name, scale in (("v", 6 / math.sqrt(3)), ("u", 8.0)):
        expected[name] += scale * factors[name]["a"].T @ factors[name]["b"]
    merged = jax.jit(adapted.merge)(trainable, frozen)
    for name, value in expected.items():
        np.testing.assert_allclose(merged[name], value, atol=1e-12)
    np.testing.assert_allclose(
        jax.jit(adapted.apply)(trainable, frozen, x), jax.jit(forward)(expected, x), atol=1e-12
    )
    counts = {row[0]: row[5] for row in lj.summary(trainable, frozen).rows}
    assert counts == {"w": (1 + 4 + 4) * 12, "v": 3 * 14, "u": 2 * 13}


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


# -- training ----------------------------------------------------------------------------------


def test_adam_cannot_tell_alpha_from_learning_rates(x64):
    """(alpha, A, lr_A, lr_B) and (alpha / pq, p A, p lr_A, q lr_B) train alike, for epsilon = 0.

    Schulman and Thinking Machines 2025, "LoRA Without Regret"; B, which starts at q B here.
    """
    base = base_of((6, 9))
    x, t = base_of((12, 6), 1).value, base_of((12, 9), 2).value
    plain, adam = LoRA(rank=2, alpha=3.0), optax.scale_by_adam(eps=0.0)

    @jax.jit
    def step(trainable, state, constants, rates):
        gradient = jax.grad(
            lambda f: ((plain.dot(x, base, Factors(f, constants)) - t) ** 2).mean()
        )(trainable)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = adam.update(gradient, state)
        trainable = {n: trainable[n] - rates[n] * updates[n] for n in trainable}
        return trainable, state, plain.weight(base, Factors(trainable, constants))

    def train(variant, trainable, rates):
        constants = variant.init(jax.random.key(0), base).constants
        state, weights = adam.init(trainable), []
        for _ in range(10):
            trainable, state, weight = step(trainable, state, constants, rates)
            weights.append(np.asarray(weight))
        return weights

    start = random_factors(plain, base).trainable
    expected = train(plain, start, {"a": 1e-2, "b": 1e-2})
    assert np.abs(expected[-1] - expected[0]).max() > 0.05
    for p, q in ((2.0, 1.0), (1.0, 4.0), (0.5, 8.0)):
        scaled = {"a": p * start["a"], "b": q * start["b"]}
        rates = {"a": p * 1e-2, "b": q * 1e-2}
        got = train(LoRA(rank=2, alpha=3.0 / (p * q)), scaled, rates)
        np.testing.assert_allclose(got, expected, atol=1e-10)


def test_a_start_with_more_directions_than_the_weight_has_is_refused_with_its_path():
    variant = LoRA(rank=5, initialization="pissa")
    adapted = lj.adapt(lambda params, x: x @ params["deep"]["w"], variant, "w")
    said = (
        r"'deep/w': initialization 'pissa' takes rank = 5 directions, more than min\(in, out\) = 4"
    )
    with pytest.raises(ValueError, match=rf"{said} of \(4, 6\)"):
        adapted.init(jax.random.key(0), {"deep": {"w": jnp.ones((4, 6))}}, jnp.ones((2, 4)))
