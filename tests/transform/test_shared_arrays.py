"""Arrays that all matrices of a variant share and that train: one copy, whatever uses it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tied_method import Tied

import lora_jax as lj
import variants
from lora_jax.training.optim import decays

pytestmark = pytest.mark.usefixtures("x64")

SHAPES = {"layers/w": (3, 4, 4), "up": (4, 6), "down": (6, 2)}


def forward(params, x):
    layer = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
    x, _ = jax.lax.scan(layer, x, params["layers/w"])
    return jnp.tanh(x @ params["up"]) @ params["down"]


def begun(targets, seed=0):
    random = np.random.RandomState(0)
    params = {path: jnp.asarray(random.randn(*shape)) for path, shape in SHAPES.items()}
    x, adapted = jnp.asarray(random.randn(5, 4)), lj.adapt(forward, targets=targets)
    trainable, frozen = jax.jit(adapted.init)(jax.random.key(seed), params, x)
    moved = jax.tree.map(lambda leaf: leaf + 0.3 * random.randn(*leaf.shape), trainable)
    return adapted, params, x, moved, frozen


TWO = {lj.layers("layers/w", slice(1, 3)): Tied(), "up": Tied(), "down": Tied(rank=1)}
"""A group of one matrix, then one of some layers of a stack and another matrix."""


def test_what_is_shared_reaches_every_matrix_and_learns_from_all():
    """Outputs by the formula, and gradients by finite differences, through scan and remat."""
    adapted, params, x, trainable, frozen = begun(TWO)
    assert jax.tree.map(jnp.shape, trainable["shared"]) == {
        "0": {"a": (1, 6), "b": (1, 2)},
        "1": {"a": (2, 4), "b": (2, 6)},
    }

    def effective(path, number, layer=...):
        each, d = trainable["shared"][number], trainable["adapters"][path]["d"][layer]
        inputs, outputs = SHAPES[path][-2:]
        return params[path][layer] + (each["a"][:, :inputs].T * d[None]) @ each["b"][:, :outputs]

    layers = [params["layers/w"][0], *(effective("layers/w", "1", layer) for layer in (1, 2))]
    wanted = {"layers/w": jnp.stack(layers), "up": effective("up", "1")}
    wanted["down"] = effective("down", "0")
    chex.assert_trees_all_close(adapted.merge(trainable, frozen), wanted, rtol=1e-12)

    @jax.jit
    @jax.value_and_grad
    def loss(shared):
        return (adapted.apply({**trainable, "shared": shared}, frozen, x) ** 2).sum()

    value, gradient = loss(trainable["shared"])
    np.testing.assert_allclose(value, (forward(wanted, x) ** 2).sum(), rtol=1e-12)
    leaves, treedef = jax.tree.flatten(trainable["shared"])
    for number, (leaf, slope) in enumerate(zip(leaves, jax.tree.leaves(gradient), strict=True)):
        step = np.zeros(leaf.shape)
        step[-1, -1] = 1e-5
        ends = [
            loss(treedef.unflatten([*leaves[:number], leaf + h, *leaves[number + 1 :]]))[0]
            for h in (step, -step)
        ]
        np.testing.assert_allclose(slope[-1, -1], (ends[0] - ends[1]) / 2e-5, rtol=1e-7)


def test_it_is_counted_and_listed_once():
    _, _, _, trainable, frozen = begun(TWO)
    summary = lj.summary(trainable, frozen)
    rows = {(row[0], row[1]): row[-1] for row in summary.rows}
    assert rows["a", "shared by 2"] == 8 and rows["b", "shared by 1"] == 2
    assert summary.trained == 2 * 2 + 2 + 1 + (8 + 12) + (6 + 2)


def test_rates_decay_and_updates_are_of_the_one_array():
    class Halved(Tied):
        def update(self, state, before, after, grads, step):
            assert all(each["b"].shape == (2, 6) for each in grads.values())
            state, after = super().update(state, before, after, grads, step)
            return state, {path: {**each, "b": each["b"] / 2} for path, each in after.items()}

    adapted, _, _, trainable, frozen = begun(
        {"layers/w|up": Halved(learning_rate_ratio=4.0), "down": Tied(rank=1)}
    )
    ones = jax.tree.map(jnp.ones_like, trainable)
    tx = adapted.optimizer(optax.sgd(1.0), frozen)
    updates, _ = tx.update(ones, tx.init(trainable), trainable)
    expected = jax.tree.map(jnp.negative, ones)
    expected["shared"]["1"]["b"] *= 4
    chex.assert_trees_all_equal(updates, expected)
    after = optax.apply_updates(trainable, updates)
    states = adapted.init_state(trainable, frozen)
    _, changed = adapted.update(states, trainable, after, ones, 0, frozen)
    after["shared"]["1"]["b"] /= 2
    chex.assert_trees_all_equal(changed, after)
    assert all(jax.tree.leaves(decays(trainable)))


def test_a_rate_of_what_is_shared_is_one_number():
    """Those of a stack's layers say nothing of the array that all of them share."""

    class ByMatrix(Tied):
        def init(self, key, base):
            return super().init(key, base)._replace(constants={"rate": jnp.asarray(2.0)})

        def learning_rates(self, constants):
            return {path: {"b": each["rate"]} for path, each in constants.items()}

    adapted, _, _, _, frozen = begun({"layers/w": ByMatrix()})
    with pytest.raises(ValueError, match=r"rate of 'b', .* one number, and has the shape \(3,\)"):
        adapted.optimizer(optax.sgd(1.0), frozen)


def test_a_file_of_other_sizes_is_refused(tmp_path):
    _, _, _, trainable, frozen = begun({"up": Tied()})
    path = lj.save_adapter(tmp_path, trainable, frozen)
    _, _, _, *other = begun({"up|layers/w": Tied(rank=2), "down": None})
    with pytest.raises(ValueError, match="nothing for the adapter 'layers/w/d'"):
        lj.start_from(path, *other)
    trainable["shared"]["0"]["b"] = jnp.zeros((2, 7))
    path = lj.save_adapter(tmp_path, trainable, frozen)
    _, _, _, *mine = begun({"up": Tied()}, seed=1)
    with pytest.raises(ValueError, match=r"has \[2, 7\] for the shared 'b', expected \[2, 6\]"):
        lj.start_from(path, *mine)
    with pytest.raises(ValueError, match=r"has \[2, 7\] for 'shared/0/b', expected \[2, 6\]"):
        lj.load_adapter(path, *mine)


def test_a_file_of_two_groups_is_not_one(tmp_path):
    _, _, _, trainable, frozen = begun(
        {"up|down": Tied(learning_rate_ratio=2.0), "layers/w": Tied()}
    )
    path = lj.save_adapter(tmp_path, trainable, frozen)
    _, _, _, *mine = begun({"up|down|layers/w": Tied()})
    with pytest.raises(ValueError, match="share arrays in 2 groups, and this run's in 1"):
        lj.start_from(path, *mine)


def test_only_methods_that_share_have_the_part():
    """So structures and files of all others stay as they are."""
    _, _, _, trainable, _ = begun({"up": Tied()})
    assert set(trainable) == {"adapters", "params", "shared"}
    _, _, _, trainable, frozen = begun({"up": variants.make("vera", rank=2)})
    assert set(trainable) == {"adapters", "params"} and "projection_a" in frozen.shared[0]


@pytest.mark.parametrize("first", ["float32", "float64"])
def test_what_matrices_of_two_dtypes_share_is_of_the_wider_one(first):
    other = {"float32": "float64", "float64": "float32"}[first]
    params = {"a": np.ones((4, 4), first), "b": np.ones((4, 4), other)}
    vera = variants.make("vera", rank=2)
    adapted = lj.adapt(lambda p, x: [x.astype(w.dtype) @ w for w in p.values()], vera)
    _, frozen = jax.eval_shape(adapted.init, jax.random.key(0), params, np.ones((2, 4)))
    assert frozen.shared[0]["projection_a"].dtype == np.float64
