"""DoRA: its norm without a dense matrix, its two gradients, and what the compiled program makes."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lora_jax as lj
from lora_jax.variant import Base, Factors, Variant
from variants.dora import DoRA

KEY = jax.random.key(0)
SIZES = (1e-4, 1e-2, 1.0, 1e2)

init = jax.jit(lambda variant, key, base: variant.init(key, base), static_argnums=0)
norm = jax.jit(lambda variant, base, factors: variant.norm(base, factors), static_argnums=0)


def base_of(shape, seed=0, dtype=jnp.float32):
    return Base(jnp.asarray(np.random.RandomState(seed).randn(*shape).astype(dtype)), "io")


def factors_of(variant, base, size=1.0, seed=1):
    """Factors with A and B moved by random numbers of some size, hidden rows too, and m by half."""
    trainable, constants = jax.tree.map(np.asarray, init(variant, jax.random.key(seed), base))
    random = np.random.RandomState(seed)
    moved = {n: x + size * random.randn(*x.shape) for n, x in trainable.items()}
    moved["m"] = trainable["m"] * (0.5 + random.rand(*trainable["m"].shape))
    return Factors({n: x.astype(trainable[n].dtype) for n, x in moved.items()}, constants)


def direction(base, factors):
    """V = W + s A^T B (less s A0^T B0), in float64."""
    t, c = ({n: np.asarray(x, np.float64) for n, x in part.items()} for part in factors)
    rows = c.get("mask", np.ones(len(t["a"])))[:, None]
    update = (rows * t["a"]).T @ t["b"]
    if "a0" in c:
        update -= (rows * c["a0"]).T @ c["b0"]
    return np.asarray(base.dense(), np.float64) + c["scale"] * update


def effective(base, factors, norm=None):
    """W' in float64, with the norm of V's columns or another one."""
    v = direction(base, factors)
    norm = np.linalg.norm(v, axis=0) if norm is None else norm
    return v * np.asarray(factors.trainable["m"], np.float64) / norm


# -- the norm ----------------------------------------------------------------------------------

SETTINGS = {
    "plain": {},
    "negative alpha": {"alpha": -3.0},
    "masked": {"max_rank": 6},
    "pissa": {"initialization": "pissa"},
    "pissa, masked": {"initialization": "pissa", "max_rank": 6},
    "olora": {"initialization": "olora", "alpha": 2.0},
}


def norm_error(base, factors, norm):
    assert norm.dtype == jnp.float32
    truth = np.linalg.norm(direction(base, factors), axis=0)
    return np.abs(np.asarray(norm, np.float64) / truth - 1).max()


FORMS = [((6, 9), 1), ((9, 6), 4), ((130, 70), 5)]
WIDE = [(name, *FORMS[i % 3], jnp.float32) for i, name in enumerate(SETTINGS)]
NARROW = [
    ("plain", (300, 20), 5, jnp.bfloat16),
    ("masked", (512, 16), 5, jnp.bfloat16),
    ("pissa", (64, 130), 5, jnp.bfloat16),
]


@pytest.mark.parametrize("settings, shape, rank, dtype", [*WIDE, *NARROW])
def test_the_factored_norm_is_the_dense_one(settings, shape, rank, dtype):
    """Of weights in bfloat16, too, though no matrix of their size is cast."""
    base, variant = base_of(shape, dtype=dtype), DoRA(rank=rank, **SETTINGS[settings])
    bound = 2e-6 if dtype == jnp.float32 else 1e-5
    for size in SIZES:
        factors = factors_of(variant, base, size)
        assert norm_error(base, factors, norm(variant, base, factors)) < bound, size


@pytest.mark.parametrize("left", [0.3, 0.03])
def test_what_cancels_in_the_norm_costs_its_square_in_digits(left):
    """||V|| of a part of ||W||: the three terms are near ||W||^2, and so are their errors."""
    base = base_of((100, 60))
    u, s, v = np.linalg.svd(np.asarray(base.value, np.float64), full_matrices=False)
    s[20:] *= left * np.linalg.norm(s[:20]) / np.linalg.norm(s[20:])
    base = Base(jnp.asarray(u * s @ v, jnp.float32), "io")
    variant = DoRA(rank=20, initialization="pissa")
    trainable, constants = init(variant, KEY, base)
    factors = Factors(
        {**trainable, "b": np.zeros((20, 60), np.float32)}, constants
    )  # V is the residual
    assert norm_error(base, factors, norm(variant, base, factors)) < 2e-6 / left**2


@pytest.mark.parametrize("left", [1e-4, 0.0])
def test_outputs_are_bounded_where_the_adapter_cancels_the_weight(left):
    base, variant = base_of((64, 4)), DoRA(rank=4, alpha=4.0)
    u, s, v = np.linalg.svd(np.asarray(base.value), full_matrices=False)
    trainable, constants = init(variant, KEY, base)
    moved = {"a": (u * s).T, "b": ((left - 1) * v).astype(np.float32)}
    dot = jax.jit(lambda x, factors: variant.dot(x, base, factors))
    y = dot(np.ones((1, 64), np.float32), Factors(trainable | moved, constants))
    assert (np.abs(y[0]) <= 1.01 * 8 * trainable["m"]).all()  # |x . w'| <= |x| |w'|, |w'| = m


# -- the start ---------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS)
def test_magnitudes_start_as_the_norms(settings):
    dtype = jnp.bfloat16 if settings in ("masked", "olora") else jnp.float32
    base, variant = base_of((40, 30), dtype=dtype), DoRA(rank=4, **SETTINGS[settings])
    x = base_of((5, 40), 1, dtype).value

    @jax.jit
    def uses(base, x):
        factors = variant.init(KEY, base)
        y = variant.dot(x, base, factors), base.dot(x)
        return factors.trainable["m"], variant.weight(base, factors), *y

    m, weight, y, plain = uses(base, x)
    w = np.asarray(base.value, np.float64)
    assert m.shape == (30,) and m.dtype == jnp.float32
    np.testing.assert_allclose(m, np.linalg.norm(w, axis=0), rtol=1e-6)
    np.testing.assert_allclose(weight, w, rtol=1e-6, atol=1e-6)
    y, plain = (np.asarray(each, np.float32) for each in (y, plain))
    np.testing.assert_allclose(y, plain, rtol=float(2 * jnp.finfo(dtype).eps))
    assert variant.count((40, 30)) == 4 * 70 + 30


@pytest.mark.usefixtures("full_optimization")
def test_compiled_magnitudes_of_stacked_weights_are_right_whatever_was_in_memory():
    """Fully optimised, on matrices of a size at which XLA chooses other kernels on CPUs."""
    params = np.random.RandomState(0).randn(2, 1024, 512).astype(np.float32)
    adapted = lj.adapt(lambda w, x: lax.scan(lambda x, w: (x @ w @ w.T, None), x, w)[0], DoRA(), "")
    compiled, x = jax.jit(adapted.init), np.ones((4, 1024), np.float32)
    spoil = jax.jit(lambda zero: [jnp.full(4**size, jnp.nan) + zero for size in range(5, 11)])
    for key in map(jax.random.key, range(4)):
        trainable, _ = compiled(key, params, x)
        (m,) = (each["m"] for each in trainable["adapters"].values())
        np.testing.assert_allclose(m, np.linalg.norm(params, axis=1), rtol=1e-5)
        jax.block_until_ready(spoil(0.0))  # memory that is used again


@pytest.mark.parametrize("detach", [True, False])
def test_columns_of_zeros_are_harmless(detach):
    empty = np.array([1, 4])
    w = np.array(base_of((7, 5)).value)
    w[:, empty] = 0
    base, x = Base(jnp.asarray(w), "io"), base_of((3, 7), 1).value
    variant = DoRA(rank=2, detach_norm=detach)
    factors = init(variant, KEY, base)
    assert (np.asarray(factors.trainable["m"])[empty] < 1e-18).all()

    @jax.jit
    def uses_and_gradients(trainable):
        def uses(trainable):
            each = Factors(trainable, factors.constants)
            return {"dot": variant.dot(x, base, each), "weight": variant.weight(base, each)}

        ys, pull = jax.vjp(uses, trainable)
        zeros = jax.tree.map(jnp.zeros_like, ys)
        return {n: (y, pull({**zeros, n: jnp.ones_like(y)})[0]) for n, y in ys.items()}

    for y, gradient in jax.tree.map(np.asarray, uses_and_gradients(factors.trainable)).values():
        np.testing.assert_array_equal(y[:, empty], 0.0)
        assert all(np.isfinite(leaf).all() for leaf in (y, *gradient.values()))
        assert gradient["b"].any(axis=0).all()  # those columns learn too
    ones = {"b": np.ones((2, 5), np.float32), "m": np.ones(5, np.float32)}
    moved = Factors({**factors.trainable, **ones}, factors.constants)
    got, w = uses_and_gradients(moved.trainable), effective(base, moved)
    np.testing.assert_allclose(got["weight"][0], w, atol=1e-5)
    np.testing.assert_allclose(got["dot"][0], x @ w, atol=1e-5)


# -- the gradients -----------------------------------------------------------------------------


def differences(function, trainable, step=1e-6):
    """The gradient of a function of NumPy arrays, entry by entry."""
    gradient = {}
    for name, value in trainable.items():
        slopes = np.zeros(value.shape)
        for place in np.ndindex(value.shape):
            ends = []
            for sign in (1, -1):
                moved = np.array(value)
                moved[place] += sign * step
                ends.append(function({**trainable, name: moved}))
            slopes[place] = (ends[0] - ends[1]) / (2 * step)
        gradient[name] = slopes
    return gradient


ROWS = np.array([4, 0, 0])


TRUTHS = [lambda w: X @ w, lambda w: Z @ w.T, lambda w: w[ROWS], lambda w: w]
X, Z = (np.random.RandomState(seed).randn(3, width) for seed, width in ((5, 5), (6, 4)))


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("settings", ["plain", "pissa, masked"])
def test_the_gradient_is_the_difference_quotient_with_the_norm_fixed_or_not(detach, settings, x64):
    base = base_of((5, 4), dtype=np.float64)
    variant = DoRA(rank=2, detach_norm=detach, **SETTINGS[settings])
    trainable, constants = factors_of(variant, base)
    fixed = np.linalg.norm(direction(base, Factors(trainable, constants)), axis=0)
    random = np.random.RandomState(7)
    cotangents = [random.randn(*truth(np.zeros((5, 4))).shape) for truth in TRUTHS]

    def uses(trainable):
        each = base, Factors(trainable, constants)
        products = variant.dot(X, *each), variant.dot_t(Z, *each)
        return [*products, variant.take(ROWS, *each), variant.weight(*each)]

    @jax.jit
    def outputs_and_gradients(trainable):
        ys, pull = jax.vjp(uses, trainable)
        alone = [[c * (i == j) for j, c in enumerate(cotangents)] for i in range(len(ys))]
        return ys, [pull(list(map(jnp.asarray, each)))[0] for each in alone]

    results = zip(*outputs_and_gradients(trainable), TRUTHS, cotangents, strict=True)
    for y, gradient, truth, cotangent in results:

        def score(trainable, norm, truth=truth, cotangent=cotangent):
            return np.sum(truth(effective(base, Factors(trainable, constants), norm)) * cotangent)

        np.testing.assert_allclose(
            y, truth(effective(base, Factors(trainable, constants))), atol=1e-12
        )
        right = differences(functools.partial(score, norm=fixed if detach else None), trainable)
        wrong = differences(functools.partial(score, norm=None if detach else fixed), trainable)
        for name in "abm":
            np.testing.assert_allclose(gradient[name], right[name], atol=1e-7)
        assert np.abs(gradient["b"] - wrong["b"]).max() > 1e-2
        np.testing.assert_allclose(right["m"], wrong["m"], atol=1e-7)  # the paper's equation 7


# -- the compiled program ----------------------------------------------------------------------

IN, OUT, LAYERS, TOKENS = 512, 640, 6, 8
DENSE = IN * OUT * 4
MOVES = {
    *("parameter", "get-tuple-element", "tuple", "while", "bitcast", "constant"),
    *("dynamic-slice", "fusion"),  # one layer of a stack; what a fusion computes is listed itself
}


@dataclasses.dataclass(frozen=True)
class Merged(DoRA):
    """The control: the same method by its definition."""

    dot = Variant.dot


def once(params, x):
    return jnp.tanh(x @ params["w"])


def stack(params, x):
    return lax.scan(lambda x, w: (x + jnp.tanh(x @ w["up"]) @ w["down"], None), x, params)[0]


def chain(params, x):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["w"])[0]


def compile_step(variant, forward, shapes, quantize=None):
    """A compiled loss and gradient, of which all arrays are arguments (of shapes, here)."""
    *params, x = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (*shapes.values(), (TOKENS, IN)))
    adapted = lj.adapt(forward, variant, ".*", quantize=quantize)
    named = dict(zip(shapes, params, strict=True))
    trainable, frozen = jax.eval_shape(adapted.init, KEY, named, x)

    def loss(trainable, frozen, x):
        return jnp.sum(adapted.apply(trainable, frozen, x) ** 2)

    return jax.jit(jax.value_and_grad(loss)).lower(trainable, frozen, x).compile()


def dense_results(compiled):
    """Operations, inside fusions too, that compute something of the size of the weight."""
    shape = re.compile(rf"f\d+\[(\d+,)?({IN},{OUT}|{OUT},{IN})\]")
    instruction = re.compile(r"\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z\-]*)\(")
    found = [instruction.match(line) for line in compiled.as_text().splitlines()]
    assert sum(each is not None for each in found) > 50
    made = [each[2] for each in found if each and shape.search(each[1])]
    assert "parameter" in made  # so that the weights themselves are seen
    return [operation for operation in made if operation not in MOVES]


@pytest.mark.usefixtures("full_optimization")
@pytest.mark.parametrize("detach, settings", [(True, "pissa"), (False, "plain")])
def test_a_training_step_makes_no_dense_matrix(detach, settings):
    settings = {"rank": 8, "detach_norm": detach, **SETTINGS[settings]}
    factored = compile_step(DoRA(**settings), once, {"w": (IN, OUT)})
    assert not dense_results(factored)
    assert factored.memory_analysis().temp_size_in_bytes < 0.3 * DENSE


@pytest.mark.usefixtures("full_optimization")
def test_the_merged_step_would_make_several():
    merged = compile_step(Merged(rank=8), once, {"w": (IN, OUT)})
    assert len(dense_results(merged)) > 3
    assert merged.memory_analysis().temp_size_in_bytes > DENSE


@pytest.mark.usefixtures("full_optimization")
def test_nor_does_a_step_over_stacked_layers():
    """With a gradient through the norm, which costs most."""
    shapes = {"up": (LAYERS, IN, OUT), "down": (LAYERS, OUT, IN)}
    factored = compile_step(DoRA(rank=8, detach_norm=False), stack, shapes)
    assert not dense_results(factored)
    # XLA's loops copy the layer that they are at: two matrices, the adapters and activations.
    assert factored.memory_analysis().temp_size_in_bytes < 3.5 * DENSE


@pytest.mark.usefixtures("full_optimization")
def test_one_dequantised_matrix_at_a_time():
    storage = {"w": lj.NF4(double_quant=True)}
    compiled = compile_step(DoRA(rank=4), chain, {"w": (LAYERS, IN, IN)}, storage)
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * IN * IN * 4
