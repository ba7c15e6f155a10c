"""How factors start: distributions, decompositions of NumPy's, and a base that stays as it was."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo.check as check
from jax import lax
from scipy import stats

import lora_jax as lj
import variants
from lora_jax.methods import initialization
from lora_jax.methods.decompositions import OVERSAMPLING
from lora_jax.methods.lowrank import LowRank
from lora_jax.partition import flatten
from lora_jax.variant import Base, Factors, wide
from variants.lora import LoRA

KEY = jax.random.key(0)
SURPRISE = 1e-3  # the p-value below which one of a few tests of a distribution is no accident
TAKEN = ["pissa", "milora", "olora"]
MOVING = [*TAKEN, "pissa_niter_2"]

init = jax.jit(lambda variant, key, base: variant.init(key, base), static_argnums=0)


def base_of(shape, seed=0, dtype=jnp.float32):
    return Base(jnp.asarray(np.random.RandomState(seed).randn(*shape).astype(dtype)), "io")


def decaying(shape, power, seed=0):
    """A matrix whose singular values are 1, 2^-power, 3^-power, ..."""
    random = np.random.RandomState(seed)
    u, v = (np.linalg.qr(random.randn(n, min(shape)))[0] for n in shape)
    return u * np.arange(1.0, min(shape) + 1) ** -power @ v.T


def start_of(variant, base, key=KEY):
    """A, B and s as they start, in float64."""
    trainable, constants = init(variant, key, base)
    assert trainable["a"].dtype == trainable["b"].dtype == wide(base.dtype)
    return (np.asarray(x, np.float64) for x in (trainable["a"], trainable["b"], constants["scale"]))


# -- drawn -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank, shape", [(8, (300, 20)), (30, (1000, 31))])
@pytest.mark.parametrize("name", ["normal", "gaussian"])
def test_normal_starts_have_their_standard_deviation(name, rank, shape):
    """Of the authors' code, 0.02, or of PEFT, one over the rank."""
    a, b, _ = start_of(LoRA(rank=rank, initialization=name), base_of(shape))
    deviation = {"normal": 0.02, "gaussian": 1 / rank}[name]
    assert stats.kstest(a.ravel() / deviation, "norm").pvalue > SURPRISE
    assert a.shape == (rank, shape[0]) and not b.any()


def test_init_ab_draws_both_within_the_bound_of_the_inputs():
    variant = LoRA(rank=8, initialization="init_ab")
    a, b, _ = start_of(variant, base_of((300, 250)))
    assert (a.shape, b.shape) == ((8, 300), (8, 250))
    for factor in (a, b):
        uniform = (factor.ravel() * 300**0.5 + 1) / 2
        assert stats.kstest(uniform, "uniform").pvalue > SURPRISE
    # No factor is a function of the other one, as from one key.
    assert abs(np.corrcoef(a[:, :250].ravel(), b.ravel())[0, 1]) < 4 / (8 * 250) ** 0.5


@pytest.mark.parametrize(
    "rank, shape, dtype",
    [(2, (100, 60), jnp.float32), (8, (300, 20), jnp.bfloat16), (30, (200, 31), jnp.float32)],
)
def test_orthogonal_factors_cancel(rank, shape, dtype):
    a, b, _ = start_of(LoRA(rank=rank, initialization="orthogonal"), base_of(shape, dtype=dtype))
    bound = 1e-6 * np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)[None]
    assert (np.abs(a.T @ b) < bound).all()
    for factor, other in ((a, b), (b, a)):
        # Half of the ranks each, in which it is normal with deviation 1/10.
        values = np.linalg.svd(factor, compute_uv=False)
        assert (values[rank // 2 :] < 1e-5).all() and values[rank // 2 - 1] > 0.1
        basis = np.linalg.svd(other)[0][:, rank // 2 :]  # known without looking at the factor
        normal = 10 * basis.T @ factor
        assert stats.kstest(normal.ravel(), "norm").pvalue > SURPRISE


def test_another_key_gives_other_numbers_unless_they_are_the_weights():
    base = base_of((20, 12))
    for name in (*initialization.DRAWN, "init_ab", *MOVING):
        variant = LoRA(rank=4, initialization=name)
        keys = map(jax.random.key, (0, 0, 1))
        starts = [np.asarray(init(variant, key, base).trainable["a"]) for key in keys]
        np.testing.assert_array_equal(starts[0], starts[1])
        assert (starts[0] != starts[2]).any() == (name not in TAKEN), name


DRAWING = [
    *((name, {}) for name in ("lora", "lora_fa", "adalora", "dora", "vera", "randlora", "vblora")),
    *((name, {}) for name in ("loha", "delora", "gralora")),
    *(("lora", {"initialization": start}) for start in ("orthogonal", "init_ab", "pissa_niter_2")),
    ("lokr", {"factor": 2}),
    ("hra", {"pairs": False}),
]


def numbers_in_order(array):
    """The order in size of each run of 16 numbers that differ, whatever they are multiplied by."""
    flat = np.asarray(array).ravel()
    runs = flat[: flat.size // 16 * 16].reshape(-1, 16)
    return list(map(tuple, runs[np.ptp(runs, axis=1) > 0].argsort(axis=1)))


@pytest.mark.parametrize("name, settings", DRAWING, ids=lambda each: str(each))
def test_what_is_drawn_is_drawn_once(name, settings):
    """As it is not where one key serves for two factors, two of their blocks, or two matrices.

    Three layers of a stack, of which one has another rank where there are ranks, and a matrix.
    """
    params = {"stack": np.zeros((3, 64, 64), np.float32), "w": np.zeros((64, 64), np.float32)}
    variant = variants.make(name, **settings)
    ranked = isinstance(variant, LowRank) and name != "adalora"
    other = dataclasses.replace(variant, rank=4) if ranked else variant
    targets = {lj.layers("stack", 1): other, ".*": variant}

    def model(params, x):
        return lax.scan(lambda x, w: (x @ w, None), x, params["stack"])[0] @ params["w"]

    params = check.random_like(params, 0)
    adapted = lj.adapt(model, None, targets)
    begun = jax.jit(adapted.init)
    starts = [begun(jax.random.key(seed), params, np.zeros((2, 64))) for seed in (0, 1)]
    arrays = [{**flatten(t)[0], **flatten((f.constants, f.shared))[0]} for t, f in starts]
    drawn = {
        path: x
        for path, x in arrays[0].items()
        if jnp.issubdtype(x.dtype, jnp.floating)
        and np.any(np.asarray(x) != np.asarray(arrays[1][path]))
        and path.rpartition("/")[2] not in ("a0", "b0")
    }
    runs = [run for x in drawn.values() for run in numbers_in_order(x)]
    assert len(runs) > 16 and len(set(runs)) == len(runs)


@pytest.mark.parametrize(
    "name, settings, shape, bounds",
    [
        ("lora", {"rank": 8}, (300, 20), {"a": 300}),
        ("vera", {"rank": 64}, (300, 20), {"projection_a": 300 / 6, "projection_b": 64 / 6}),
        ("vera", {"rank": 7}, (20, 900), {"projection_a": 20 / 6, "projection_b": 7 / 6}),
        ("loha", {"rank": 5}, (40, 300), {"a": 40, "c": 40, "d": 5}),
        ("lokr", {"rank": 5, "factor": 2}, (96, 120), {"a": 48, "b": 5}),
        ("lokr", {"rank": 40, "factor": 2}, (96, 120), {"d": 48}),
        ("lokr", {"rank": 2, "factor": 48, "decompose_both": True}, (96, 120), {"ca": 48}),
        ("hra", {"rank": 6}, (300, 8), {"u": 3}),
        ("hra", {"rank": 5, "pairs": False}, (300, 8), {"u": 5}),
        ("delora", {"rank": 5}, (40, 300), {"a": 40}),
        ("randlora", {"rank": 6}, (40, 300), {"random_a": 1 / 3, "random_b": 1 / 3}),
    ],
)
def test_what_is_drawn_fills_pefts_interval(name, settings, shape, bounds):
    """torch's `kaiming_uniform_(a=sqrt(5))`: up to the root of 1 / inputs, of each factor's own.

    RandLoRA's matrices have variance one, and VeRA's reach the root of 6 / inputs.
    """
    variant = variants.make(name, **settings)
    arrays = {**init(variant, KEY, base_of(shape)).trainable}
    arrays |= variant.init_shared(KEY, [shape], jnp.float32)
    for factor, fan_in in bounds.items():
        numbers = np.unique(np.asarray(arrays[factor], np.float64))  # HRA has each twice
        uniform = (numbers * fan_in**0.5 + 1) / 2
        assert uniform.min() >= 0 and uniform.max() <= 1
        assert stats.kstest(uniform, "uniform").pvalue > SURPRISE


# -- taken from the weight ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, shape, dtype, settings",
    [
        ("pissa", (20, 31), jnp.float64, {"rank": 1}),
        ("pissa", (31, 20), jnp.float64, {"rank": 7, "scale": "alpha/sqrt(rank)"}),
        ("pissa", (16, 16), jnp.float64, {"rank": 16, "alpha": 100.0}),
        ("pissa", (31, 20), jnp.float32, {"rank": 5, "alpha": 5.0}),
        ("pissa", (20, 31), jnp.bfloat16, {"rank": 5, "alpha": 0.3}),
        ("milora", (31, 20), jnp.float64, {"rank": 7, "scale": "alpha/sqrt(rank)"}),
        ("milora", (20, 31), jnp.float32, {"rank": 5, "alpha": 0.3}),
    ],
)
def test_starts_take_their_singular_triplets_of_the_weight(name, shape, settings, dtype, x64):
    """The leading ones, the best approximation of their rank; with MiLoRA, the last ones."""
    base, variant = base_of(shape, dtype=dtype), LoRA(initialization=name, **settings)
    a, b, scale = start_of(variant, base)
    u, s, v = np.linalg.svd(np.asarray(base.value, np.float64), full_matrices=False)
    rank, tolerance = settings["rank"], 1e-12 if dtype == jnp.float64 else 3e-6
    taken = slice(rank) if name == "pissa" else slice(-rank, None)
    part = u[:, taken] * s[taken] @ v[taken]
    np.testing.assert_allclose(scale * a.T @ b, part, atol=tolerance * s[0])
    for factor in (a, b):  # each takes the root of a value, divided evenly
        wanted = np.diag(s[taken] / scale)
        np.testing.assert_allclose(factor @ factor.T, wanted, atol=tolerance * s[0] / scale)


@functools.partial(jax.jit, static_argnums=0)
def left_by_pissa(variant, keys, w):
    """What remains of W beside the start's product, for each key."""

    def left(key):
        trainable, constants = variant.init(key, Base(w, "io"))
        return w - constants["scale"] * trainable["a"].T @ trainable["b"]

    return jax.vmap(left)(keys)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_more_iterations_bring_pissa_closer(power, x64):
    """Errors in the Frobenius norm, relative to the smallest possible, over several keys."""
    rank, w = 8, decaying((60, 45), power)
    best = np.linalg.norm(np.linalg.svd(w, compute_uv=False)[rank:])
    keys = jax.random.split(KEY, 10)

    def excess(iterations):
        variant = LoRA(rank=rank, alpha=3.0, initialization=f"pissa_niter_{iterations}")
        left = np.asarray(left_by_pissa(variant, keys, w))
        return np.linalg.norm(left, axis=(1, 2)) / best - 1

    errors = [excess(iterations) for iterations in (0, 1, 4, 16)]
    assert all((error > -1e-9).all() for error in errors)
    expected = math.sqrt(1 + rank / (OVERSAMPLING - 1)) - 1  # Halko, theorem 10.5
    assert errors[0].mean() < expected
    for fewer, more, bound in zip(errors, errors[1:], (0.1, 1e-2, 1e-3), strict=False):
        assert more.mean() < max(0.5 * fewer.mean(), 1e-9) and more.max() < bound


@pytest.mark.parametrize(
    "shape, rank, dtype",
    [((20, 31), 5, jnp.bfloat16), ((31, 20), 20, jnp.float64), ((16, 16), 1, jnp.float32)],
)
def test_olora_is_the_leading_part_of_a_qr_decomposition(shape, rank, dtype, x64):
    base = base_of(shape, dtype=dtype)
    a, b, _ = start_of(LoRA(rank=rank, alpha=3.0, initialization="olora"), base)
    w = np.asarray(base.value, np.float64)
    q, r = np.linalg.qr(w.T)
    tolerance = 1e-12 if dtype == jnp.float64 else 3e-5
    np.testing.assert_allclose(b @ b.T, np.eye(rank), atol=tolerance)
    np.testing.assert_allclose(a.T @ b, (q[:, :rank] @ r[:rank]).T, atol=tolerance)
    # In other words, W projected on its first rows.
    rows = w[:rank]
    projection = rows.T @ np.linalg.solve(rows @ rows.T, rows)
    np.testing.assert_allclose(a.T @ b, w @ projection, atol=10 * tolerance)


@pytest.mark.parametrize("name", MOVING)
def test_each_layer_of_a_stack_starts_from_itself(name, x64):
    def forward(params, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w["u"].T @ w["v"].T), None), x, params)[0]

    params = check.random_like({"u": np.zeros((3, 9, 7)), "v": np.zeros((3, 7, 9))}, 0)
    variant = LoRA(rank=3, alpha=3.0, initialization=name)
    adapted = lj.adapt(forward, variant, ".*")
    trainable, frozen = jax.jit(adapted.init)(KEY, params, np.zeros((2, 7)))
    params, found = jax.tree.map(np.asarray, (params, trainable["adapters"]))
    for path, weight in params.items():
        for index in range(3):
            got = {n: x[index] for n, x in found[path].items()}
            if name != "pissa_niter_2":
                alone = init(variant, KEY, Base(weight[index].T, "io")).trainable
                check.assert_close(got, alone, 1e-12)
            product = got["a"].T @ got["b"]
            assert np.linalg.norm(weight[index].T - product) < np.linalg.norm(weight[index])
    assert frozen.constants["u"]["scale"].tolist() == [1.0, 1.0, 1.0]


# -- the base stays as it was ------------------------------------------------------------------


def model(params, x):
    x = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["stack"])[0]
    return jnp.tanh(x @ params["w"]) @ params["table"].T + params["table"][jnp.array([1, 0, 1])]


SHAPES = {"stack": (2, 24, 24), "w": (24, 12), "table": (12, 12)}


@pytest.mark.parametrize(
    "name, settings",
    [("pissa", {"rank": 7, "alpha": 3.0}), ("olora", {"rank": 3, "max_rank": 5})],
)
def test_the_start_is_the_base_bit_by_bit(name, settings):
    params = check.random_like({n: np.zeros(shape, np.float32) for n, shape in SHAPES.items()}, 0)
    x = check.random_like(np.zeros((3, 24), np.float32), 1)
    adapted = lj.adapt(model, LoRA(initialization=name, **settings), ".*")
    trainable, frozen = jax.jit(adapted.init)(KEY, params, x)
    apply = jax.jit(adapted.apply)
    got = apply(trainable, frozen, x)
    np.testing.assert_array_equal(got, jax.jit(model)(params, x))
    moved = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.1), trainable)
    merged, disabled = jax.jit(
        lambda start, moved, frozen: (adapted.merge(start, frozen), adapted.disable(moved, frozen))
    )(trainable, moved, frozen)
    chex.assert_trees_all_equal(merged, params)
    assert (np.asarray(apply(moved, frozen, x)) != got).any()
    chex.assert_trees_all_equal(disabled, params)


@pytest.mark.parametrize(
    "name, dtype", [("pissa", "float32"), ("pissa_niter_2", "bfloat16"), ("olora", "bfloat16")]
)
def test_a_small_step_from_the_start_is_not_lost(name, dtype):
    """A change of 1e-4 of the factors is far below the rounding of what is subtracted."""
    base, variant = base_of((100, 60)), LoRA(rank=8, alpha=8.0, initialization=name)
    trainable, constants = init(variant, KEY, base)
    random = np.random.RandomState(1)
    trainable = {n: np.asarray(x) for n, x in trainable.items()}
    step = {n: 1e-4 * np.abs(x).mean() * random.randn(*x.shape) for n, x in trainable.items()}
    moved = {n: (x + step[n]).astype(x.dtype) for n, x in trainable.items()}
    exact = {n: np.asarray(x, np.float64) for n, x in (moved | constants).items()}
    truth = exact["a"].T @ exact["b"] - exact["a0"].T @ exact["b0"]

    dtype = jnp.dtype(dtype)
    a, b = jax.jit(lambda f: variant.low_rank_factors(f, dtype))(Factors(moved, constants))
    assert a.dtype == b.dtype == dtype and a.shape == (16, 100)
    x = np.random.RandomState(2).randn(50, 100)

    def error(delta):
        return np.linalg.norm(x @ (delta - truth)) / np.linalg.norm(x @ truth)

    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert error(a.T @ b) < (0.01 if dtype == jnp.bfloat16 else 1e-5)
    rounded = {n: x.astype(jnp.bfloat16).astype(np.float64) for n, x in exact.items()}
    naive = rounded["a"].T @ rounded["b"] - rounded["a0"].T @ rounded["b0"]
    assert error(naive) > 0.5  # each product cast to bfloat16 by itself


def test_a_method_that_starts_elsewhere_for_a_reason_of_its_own_subtracts_as_well():
    class Elsewhere(LoRA):
        differs_at_init = "its bias is drawn"

    factors = init(Elsewhere(rank=2, initialization="pissa"), KEY, base_of((9, 8)))
    assert {"a0", "b0"} <= factors.constants.keys()


# -- every method ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["init_ab", "pissa", "milora", "olora"])
def test_methods_that_are_an_initialisation(name):
    mine = variants.make(name, rank=4, alpha=4.0)
    assert mine.initialization == name
    base = base_of((9, 8))
    as_setting = init(LoRA(rank=4, alpha=4.0, initialization=name), KEY, base)
    chex.assert_trees_all_equal(init(mine, KEY, base), as_setting)
    assert dataclasses.replace(mine, initialization="gaussian").count((9, 8)) == 4 * 17
