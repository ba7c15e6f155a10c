"""VeRA: two vectors for each matrix, and one pair of projections for all of them."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import zoo.check as check
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr

import lora_jax as lj
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
