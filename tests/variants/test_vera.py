"""VeRA: two vectors for each matrix, and one pair of projections for all of them."""

import dataclasses
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import zoo.check as check
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from scipy import stats

import lora_jax as lj
import variants
from lora_jax.files.tree_file import load_tree, save_tree
from lora_jax.training.checkpoint import Checkpoints
from lora_jax.variant import Base, Factors
from variants.vera import VeRA

KEY = jax.random.key(0)
RANK, LAYERS = 11, 3
SHAPES = {"down": (LAYERS, 16, 8), "table": (12, 8), "up": (LAYERS, 8, 16), "w": (8, 8)}
IDS = jnp.array([1, 0, 11])


def forward(params, x):
    def layer(x, w):
        return x + jnp.tanh(x @ w["up"]) @ w["down"], None

    x = lax.scan(layer, x, {name: params[name] for name in ("up", "down")})[0]
    return jnp.tanh(x @ params["w"] + params["table"][IDS]) @ params["table"].T


plain = jax.jit(forward)
# Compiled once for all tests: what `adapt` returns is equal for equal settings.
init, apply, merge = (
    jax.jit(function, static_argnums=0)
    for function in (lj.Adapted.init, lj.Adapted.apply, lj.Adapted.merge)
)


def setup(targets=".*", dtype=jnp.float64, **options):
    """The model with its matrices adapted, and trainables away from their start."""
    params = check.random_like({n: jnp.zeros(shape, dtype) for n, shape in SHAPES.items()}, 0)
    x = check.random_like(jnp.zeros((3, 8), dtype), 1)
    variant = None if isinstance(targets, dict) else VeRA(rank=RANK)
    adapted = lj.adapt(forward, variant, targets, **options)
    trainable, frozen = init(adapted, KEY, params, x)
    moved = jax.tree.map(np.add, trainable, check.random_like(trainable, 2))
    return adapted, params, x, trainable, moved, frozen


def effective(w, factors, shared):
    """W' = W + A^T diag(d) B diag(b), with A and B cut to the matrix, in NumPy."""
    w, factors = jax.tree.map(np.asarray, (w, factors))
    if w.ndim == 3:
        each = [
            effective(w[i], {n: x[i] for n, x in factors.items()}, shared) for i in range(len(w))
        ]
        return np.stack(each)
    a, b = (np.asarray(shared[name]) for name in ("projection_a", "projection_b"))
    down, up = a[:, : w.shape[0]].T * factors["d"], b[:, : w.shape[1]]
    return w + down @ (up * factors["b"])


# -- the arrays that are shared ----------------------------------------------------------------


def test_projections_are_stored_once():
    _, params, _, trainable, _, frozen = setup(dtype=jnp.float32)
    assert not jax.tree.leaves(frozen.constants)
    (shared,) = frozen.shared
    assert {n: x.shape for n, x in shared.items()} == {
        "projection_a": (RANK, 16),
        "projection_b": (RANK, 16),
        "init_key": (2,),
    }
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(frozen))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert stored == weights + 4 * RANK * (16 + 16) + 8
    counted = sum(leaf.size for leaf in jax.tree.leaves(trainable))
    by_path = {row[0]: row[5] for row in lj.summary(trainable, frozen).rows}
    assert by_path == {
        "down": LAYERS * (RANK + 8),
        "table": RANK + 8,
        "up": LAYERS * (RANK + 16),
        "w": RANK + 8,
    }
    assert counted == sum(by_path.values())


def test_another_method_has_projections_of_its_own():
    class Other(VeRA):
        pass

    params = {name: np.ones((6, 5), np.float32) for name in ("v", "w")}
    targets = {"v": VeRA(rank=3), "w": Other(rank=3)}
    adapted = lj.adapt(lambda p, x: x @ p["v"] + x @ p["w"], targets=targets)
    _, frozen = adapted.init(KEY, params, np.ones((2, 6), np.float32))
    one, other = frozen.shared
    for name, projection in one.items():
        assert not np.allclose(projection, other[name])


@pytest.mark.parametrize("rank, inputs, outputs", [(64, 300, 20), (7, 20, 900), (256, 32, 32)])
def test_projections_fill_their_intervals(rank, inputs, outputs):
    variant = VeRA(rank=rank)
    shapes = [(inputs, 1), (1, outputs), (inputs, outputs), (3, 3)]
    shared = variant.init_shared(KEY, shapes, jnp.float32)
    for name, size, fan_in in (("a", inputs, inputs), ("b", outputs, rank)):
        projection, bound = np.asarray(shared[f"projection_{name}"]), math.sqrt(6 / fan_in)
        assert projection.shape == (rank, size) and projection.dtype == np.float32
        assert stats.kstest(projection.ravel() / bound, "uniform", args=(-1, 2)).pvalue > 1e-3
    a, b = (np.asarray(shared[f"projection_{n}"]).ravel() for n in "ab")
    size = min(a.size, b.size)
    assert abs(np.corrcoef(a[:size], b[:size])[0, 1]) < 5 / math.sqrt(size)


def test_every_matrix_uses_the_same_projections(x64):
    adapted, params, x, trainable, moved, frozen = setup()
    shared = frozen.shared[0]
    merged = {p: effective(w, moved["adapters"][p], shared) for p, w in params.items()}
    check.assert_close(merge(adapted, moved, frozen), merged, 1e-13)
    check.assert_close(apply(adapted, moved, frozen, x), plain(merged, x), 1e-12)
    np.testing.assert_allclose(apply(adapted, trainable, frozen, x), plain(params, x), atol=1e-13)
    assert all((f["d"] == 0.1).all() and not f["b"].any() for f in trainable["adapters"].values())


def shapes_in(jaxpr):
    for eqn in jaxpr.eqns:
        yield from (var.aval.shape for var in (*eqn.invars, *eqn.outvars))
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: isinstance(v, ClosedJaxpr)):
            if isinstance(value, Jaxpr | ClosedJaxpr):
                yield from shapes_in(getattr(value, "jaxpr", value))


def test_a_loop_over_layers_takes_the_projections_whole():
    """Each layer sees the same arrays; none is copied for each, in either direction."""
    adapted, _, x, _, moved, frozen = setup(dtype=jnp.float32)

    def step(theta, frozen):
        return jax.grad(lambda t: jnp.sum(adapted.apply(t, frozen, x) ** 2))(theta)

    shapes = set(shapes_in(jax.make_jaxpr(step)(moved, frozen).jaxpr))
    assert (RANK, 16) in shapes and (LAYERS, RANK) in shapes  # the projections; d of all layers
    assert not {s for s in shapes if len(s) > 2 and RANK in s and {8, 16} & set(s)}


def test_groups_share_among_themselves(x64):
    targets = {"w|table": VeRA(rank=5), lj.layers("up", slice(1, None)): VeRA(rank=RANK)}
    adapted, params, x, _, moved, frozen = setup(targets)
    # In the order of the tree: the table's and w's, of rank 5, then up's, no larger than it needs.
    sizes = [{n: s.shape for n, s in each.items() if s.ndim == 2} for each in frozen.shared]
    assert sizes == [
        {"projection_a": (5, 12), "projection_b": (5, 8)},
        {"projection_a": (RANK, 8), "projection_b": (RANK, 16)},
    ]
    merged = dict(params)
    for path, shared in (("w", 0), ("table", 0), ("up", 1)):
        merged[path] = effective(params[path], moved["adapters"][path], frozen.shared[shared])
    merged["up"][0] = params["up"][0]
    check.assert_close(apply(adapted, moved, frozen, x), plain(merged, x), 1e-12)
    check.assert_close(merge(adapted, moved, frozen), merged, 1e-13)


def test_projections_depend_on_the_key_alone():
    def shared(seed, targets):
        params = {n: jnp.zeros(shape) for n, shape in SHAPES.items()}
        adapted = lj.adapt(forward, VeRA(rank=RANK), targets)
        return init(adapted, jax.random.key(seed), params, jnp.zeros((3, 8)))[1].shared[0]

    one = shared(0, ".*")
    check.assert_close(shared(0, ["up", "down"]), one, 0)
    assert (shared(1, ".*")["projection_a"] != one["projection_a"]).mean() > 0.99


# -- files, devices, many at once --------------------------------------------------------------


def test_files_leave_out_the_projections(tmp_path):
    """Those of earlier versions have them, and no key to make them again."""
    adapted, params, x, _, moved, frozen = setup(dtype=jnp.float32)
    other = init(adapted, jax.random.key(5), params, x)
    path = lj.save_adapter(tmp_path / "now", moved, frozen)
    assert not any("projection" in name for name in safetensors.numpy.load_file(path))
    *loaded, _ = lj.load_adapter(path, *other)
    chex.assert_trees_all_equal(tuple(loaded), (moved, frozen))

    (shared,) = frozen.shared
    without = {n: leaf for n, leaf in shared.items() if n != "init_key"}
    earlier = dataclasses.replace(frozen, shared=(without,))
    path = lj.save_adapter(tmp_path / "earlier", moved, earlier)
    _, loaded, _ = lj.load_adapter(path, *other)
    own = {"init_key": other[1].shared[0]["init_key"]}
    chex.assert_trees_all_equal(loaded.shared, (without | own,))


def test_through_files(tmp_path, x64):
    adapted, params, x, _, moved, frozen = setup()
    wanted = apply(adapted, moved, frozen, x)

    def elsewhere():
        """What a new process has before it restores: the same description, other numbers."""
        return init(adapted, jax.random.key(5), params, x)

    save_tree(tmp_path, {"theta": moved, "shared": frozen.shared[0]})
    tree, _ = load_tree(tmp_path)
    other = dataclasses.replace(elsewhere()[1], shared=(tree["shared"],))
    np.testing.assert_array_equal(apply(adapted, tree["theta"], other, x), wanted)

    blank, other = elsewhere()
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(
            3, {"theta": moved, "shared": frozen.shared, "constants": frozen.constants}
        )
        like = {"theta": blank, "shared": other.shared, "constants": other.constants}
        state, _, step = checkpoints.restore(like)
    restored = dataclasses.replace(other, shared=state["shared"])
    assert step == 3
    np.testing.assert_array_equal(apply(adapted, state["theta"], restored, x), wanted)
    assert (np.asarray(apply(adapted, state["theta"], other, x)) != wanted).any()  # they matter


def test_many_trainables_beside_one_pair_of_projections(x64):
    adapted, _, x, _, moved, frozen = setup()
    several = [jax.tree.map(lambda leaf, c=c: c * leaf, moved) for c in (1.0, -2.0, 0.5)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    got = jax.jit(jax.vmap(lambda theta: adapted.apply(theta, frozen, x)))(stacked)
    for theta, y in zip(several, got, strict=True):
        np.testing.assert_allclose(y, apply(adapted, theta, frozen, x), atol=1e-13)


@pytest.mark.parametrize("spec", [P("x"), P("y", "x")])
def test_on_eight_devices(spec, x64):
    adapted, _, x, _, moved, frozen = setup()
    devices = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)

    def lay(leaf, spec):
        return jax.device_put(leaf, NamedSharding(devices, spec))

    base = {p: lay(w, P(*(None,) * (w.ndim - 2), *spec)) for p, w in frozen.base.items()}
    shared = jax.tree.map(lambda w: lay(w, P(None, "x") if w.ndim == 2 else P()), frozen.shared)
    sharded = dataclasses.replace(frozen, base=base, shared=shared)

    def gradient(theta, frozen):
        return check.derivative(lambda t: adapted.apply(t, frozen, x), theta)

    run = jax.jit(gradient)
    check.assert_close(run(moved, sharded), run(moved, frozen))


# -- one matrix --------------------------------------------------------------------------------


def of_one(variant, shape=(7, 5), seed=1):
    random = np.random.RandomState(seed)
    base = Base(jnp.asarray(random.randn(*shape)), "io")
    trainable, constants = variant.init(KEY, base)
    shared = variant.init_shared(KEY, [(9, 4), (2, 6)], jnp.float64)
    moved = {n: x + jnp.asarray(random.randn(*x.shape)) for n, x in trainable.items()}
    return base, Factors(moved, constants | shared)


@pytest.mark.parametrize("rank", [1, 50])  # the last beyond the matrix's own
def test_products_are_those_of_the_weight(rank, x64):
    variant = VeRA(rank=rank)
    base, factors = of_one(variant)
    w = effective(base.value, factors.trainable, factors.constants)
    x, z = jnp.ones((2, 3, 7)), jnp.ones((2, 3, 5))
    rows = jnp.array([[0, 6], [2, 2]])

    @jax.jit
    def uses(f):
        products = variant.dot(x, base, f), variant.dot_t(z, base, f), variant.take(rows, base, f)
        return variant.weight(base, f), *products

    check.assert_close(uses(factors), (w, x @ w, z @ w.T, w[rows]), 1e-12)
    variant.validate((7, 5))
    assert variant.count((7, 5)) == sum(x.size for x in factors.trainable.values()) == rank + 5


@pytest.mark.parametrize("rate", [0.2, 0.6])
def test_dropout_drops_the_adapters_input(rate, x64):
    variant = VeRA(rank=6, dropout=rate)
    base, factors = of_one(variant)
    x, w = np.random.RandomState(3).randn(4, 7), np.asarray(base.value)
    delta = np.asarray(effective(base.value, factors.trainable, factors.constants)) - w
    dot = jax.jit(lambda key: variant.dot(jnp.asarray(x), base, factors, dropout_key=key))
    for key in jax.random.split(KEY, 3):
        kept = np.asarray(jax.random.bernoulli(key, jnp.asarray(1 - rate), x.shape))
        dropped = np.where(kept, x, 0) / (1 - rate)
        np.testing.assert_allclose(dot(key), x @ w + dropped @ delta, atol=1e-12)
    ys = np.asarray(jax.vmap(dot)(jax.random.split(KEY, 4000)))
    error = np.abs(ys.mean(0) - x @ (w + delta))
    assert (error < 4.5 * ys.std(0) / math.sqrt(len(ys))).all()  # 20 numbers


def test_on_quantised_weights(x64):
    adapted, params, x, trainable, moved, frozen = setup(quantize={"up|down|w": lj.NF4()})
    stored = adapted.disable(trainable, frozen)
    assert np.abs(stored["up"] - params["up"]).max() > 1e-3
    merged = {p: effective(w, moved["adapters"][p], frozen.shared[0]) for p, w in stored.items()}
    check.assert_close(apply(adapted, moved, frozen, x), plain(merged, x), 1e-12)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rank": 0}, "rank must be an integer of at least 1, got 0"),
        ({"rank": 2.5}, "rank must be an integer of at least 1, got 2.5"),
        ({"d_init": 0.0}, "d_init must not be 0: nothing would train"),
        ({"dropout": 1.0}, "dropout must be in [0, 1), got 1.0"),
        ({"alpha": 8}, "variant 'vera' has no setting 'alpha'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        variants.make("vera", **settings)
