"""Preconditioned gradients against least squares and inverses of NumPy's, and what they promise."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lora_jax as lj
import variants
from lora_jax.methods import preconditioning
from lora_jax.variant import Base

SHAPE, RANK, ALPHA = (7, 6), 3, 5.0
SCALE = ALPHA / RANK
UNDAMPED = 1e-14
NAMES = tuple(preconditioning.PRECONDITIONERS)


def forward(params, x):
    return jnp.concatenate([x @ params["stack"][0], x @ params["stack"][1], x @ params["w"]])


def problem(variant, targets=("stack", "w")):
    """Two stacked matrices and another one, adapted; A and B away from their start."""
    random = np.random.default_rng(0)
    params = {"stack": random.normal(size=(2, *SHAPE)), "w": random.normal(size=SHAPE)}
    adapted = lj.adapt(forward, variant, targets)
    trainable, frozen = adapted.init(jax.random.key(0), params, np.eye(SHAPE[0]))
    moved = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), trainable)
    return adapted, moved, frozen


@functools.partial(jax.jit, static_argnums=0)
def directions(adapted, trainable, frozen, gradient):
    """The gradients of the factors, and what an optimiser gets, if W' of a row has `gradient`."""

    def loss(trainable):
        return jnp.sum(adapted.apply(trainable, frozen, jnp.eye(SHAPE[0])) * gradient)

    grads = jax.grad(loss)(trainable)
    tx = adapted.optimizer(optax.sgd(-1.0), frozen)
    changed, _ = tx.update(grads, tx.init(trainable), trainable)
    return grads["adapters"], changed["adapters"]


def matrices(tree):
    """{name: array} of each of the three matrices, as NumPy's."""
    tree = jax.tree.map(np.asarray, tree)
    stack = [{name: leaf[row] for name, leaf in tree["stack"].items()} for row in range(2)]
    return [*stack, tree["w"]]


def dense_gradients():
    return np.random.default_rng(1).normal(size=(3, *SHAPE))


def jacobian(a, b, trained):
    """How W' moves with each entry of the trained factors, one after the other, as columns."""
    columns = []
    for name in trained:
        for row, entry in np.ndindex((a if name == "a" else b).shape):
            unit = np.eye(SHAPE[name == "b"])[entry]
            change = np.outer(unit, b[row]) if name == "a" else np.outer(a[row], unit)
            columns.append(SCALE * change.ravel())
    return np.stack(columns, 1)


@pytest.mark.parametrize("frozen_a", [False, True])
def test_lora_pro_is_the_closest_change_of_the_weight(frozen_a, x64):
    """Least squares over A and B; among all of its solutions, the one closest to the gradients."""
    name = "lora_fa" if frozen_a else "lora"
    settings = {"preconditioner": "lora_pro", "damping": UNDAMPED}
    adapted, trainable, frozen = problem(variants.make(name, rank=RANK, alpha=ALPHA, **settings))
    wanted = dense_gradients()
    grads, changed = directions(adapted, trainable, frozen, wanted.reshape(-1, SHAPE[1]))
    factors = {path: frozen.constants[path] | each for path, each in trainable["adapters"].items()}
    for each, plain, got, gradient in zip(
        matrices(factors), matrices(grads), matrices(changed), wanted, strict=True
    ):
        trained = sorted(plain)
        moves = jacobian(each["a"], each["b"], trained)
        plain, got = (np.concatenate([x[n].ravel() for n in trained]) for x in (plain, got))
        np.testing.assert_allclose(plain, moves.T @ gradient.ravel(), atol=1e-12)
        missing = gradient.ravel() - moves @ plain
        expected = plain + np.linalg.lstsq(moves, missing, rcond=1e-12)[0]
        np.testing.assert_allclose(got, expected, atol=1e-9)


def test_riemannian_divides_by_the_other_factor(x64):
    damping = 0.1
    variant = variants.make("riemannian", rank=RANK, alpha=ALPHA, damping=damping)
    adapted, trainable, frozen = problem(variant)
    given = directions(adapted, trainable, frozen, dense_gradients().reshape(-1, SHAPE[1]))
    for each, plain, got in zip(*map(matrices, (trainable["adapters"], *given)), strict=True):
        for name, other in (("a", each["b"]), ("b", each["a"])):
            expected = np.linalg.inv(other @ other.T + damping * np.eye(RANK)) @ plain[name]
            np.testing.assert_allclose(got[name], expected, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_weight_moves_alike_for_all_factors_of_a_product(name, x64):
    """A -> R A and B -> R^-T B leave W' as it is; plain gradients tell them apart."""
    turn = np.random.default_rng(2).normal(size=(RANK, RANK))
    moves = {}
    for chosen in (name, "none"):
        settings = {"preconditioner": chosen, "damping": UNDAMPED}
        variant = variants.make("lora", rank=RANK, alpha=ALPHA, **settings)
        adapted, trainable, frozen = problem(variant)
        turned = {
            path: {"a": turn @ each["a"], "b": np.linalg.inv(turn).T @ each["b"]}
            for path, each in trainable["adapters"].items()
        }
        for factors in (trainable["adapters"], turned):
            given = {"adapters": factors, "params": {}}
            gradient = dense_gradients().reshape(-1, SHAPE[1])
            _, changed = directions(adapted, given, frozen, gradient)
            moves.setdefault(chosen, []).append(
                [
                    SCALE * (new["a"].T @ old["b"] + old["a"].T @ new["b"])
                    for old, new in zip(*map(matrices, (factors, changed)), strict=True)
                ]
            )
    np.testing.assert_allclose(*moves[name], atol=1e-8)
    assert np.abs(np.subtract(*moves["none"])).max() > 1


def trained(adapted, params, target, tx, steps):
    """How it starts, and the losses and trainables of steps towards a target."""
    x = jnp.eye(SHAPE[0])

    @jax.jit
    def run(params):
        start, frozen = adapted.init(jax.random.key(0), params, x)
        optimizer = adapted.optimizer(tx, frozen)

        def loss(trainable):
            return jnp.sum((adapted.apply(trainable, frozen, x) - target) ** 2) / 2

        def step(carry, _):
            trainable, state = carry
            value, grads = jax.value_and_grad(loss)(trainable)
            updates, state = optimizer.update(grads, state, trainable)
            after = optax.apply_updates(trainable, updates)
            return (after, state), (value, after["adapters"], adapted.merge(after, frozen))

        return start["adapters"], jax.lax.scan(step, (start, optimizer.init(start)), length=steps)

    start, (_, each_step) = jax.tree.map(np.asarray, run(params))
    return start, *each_step


def weights():
    random = np.random.default_rng(3)
    params = {"stack": random.normal(size=(2, *SHAPE)), "w": random.normal(size=SHAPE)}
    return jax.tree.map(np.float32, params), np.float32(random.normal(size=(3, *SHAPE)))


@pytest.mark.parametrize("name", NAMES)
def test_descent_from_a_zero_b_is_that_of_the_weight(name):
    """The first step is W's own, projected on the inputs of A, and later ones do not overshoot."""
    params, targets = weights()
    variant, rate = variants.make(name, rank=RANK, alpha=float(RANK)), 0.3
    adapted = lj.adapt(forward, variant, ["stack", "w"])
    target = targets.reshape(-1, SHAPE[1])
    start, losses, _, merged = trained(adapted, params, target, optax.sgd(rate), 60)
    base = [*params["stack"], params["w"]]
    first = [*merged["stack"][0], merged["w"][0]]
    least = 0.0
    for factors, w, after, wanted in zip(matrices(start), base, first, targets, strict=True):
        assert not factors["b"].any()
        inputs = np.linalg.pinv(factors["a"]) @ factors["a"]
        np.testing.assert_allclose(after, w - rate * inputs @ (w - wanted), atol=1e-4)
        least += np.sum(np.linalg.svd(w - wanted, compute_uv=False)[RANK:] ** 2) / 2
    assert np.all(np.diff(losses) < 1e-3)
    assert losses[-1] < 1.1 * least


@pytest.mark.parametrize("name", NAMES)
def test_rounding_moves_no_row_beyond_the_rank(name):
    """Eigenvectors of another device may mix these rows with others."""
    variant = variants.make(name, rank=2, max_rank=4)
    base = Base(jnp.ones(SHAPE), "io")
    factors = variant.init(jax.random.key(0), base)
    noise = {n: jnp.full(x.shape, 1e-9) for n, x in factors.trainable.items()}
    for each in variant.precondition(noise, factors).values():
        assert each[:2].any() and not each[2:].any()


@pytest.mark.parametrize("name", NAMES)
def test_rounding_is_not_taken_for_a_direction(name):
    """Where rows of A, and of B, are almost multiples of one: the size is G's, and the way down."""
    random = np.random.default_rng(4)
    draws = [random.normal(size=(30, rows, size)) for rows in (1, RANK) for size in SHAPE]
    a, b = (np.float32(30 * (draws[n] + 1e-4 * draws[n + 2])) for n in range(2))
    g = np.float32(random.normal(size=(30, *SHAPE)))
    gradients = {"a": b @ g.swapaxes(1, 2), "b": a @ g}
    changed_by = functools.partial(preconditioning.precondition, name)

    @jax.vmap
    def change(gradients, a, b):
        got = changed_by(gradients, a, b, *jnp.array([1, 1e-8]))
        alone = changed_by({"b": noise}, a, b, *jnp.array([1, 1e-8]))["b"]
        return got["a"].T @ b + a.T @ got["b"], jnp.sum(alone * noise)

    noise = np.float32(random.normal(size=(RANK, SHAPE[1])))
    changes, slopes = change(gradients, a, b)
    sizes = [np.linalg.norm(x, axis=(1, 2)) for x in (changes, g)]
    assert np.all(sizes[0] < 2.5 * sizes[1])
    assert np.all(slopes > 0)


def test_layers_left_out_and_other_weights_keep_their_gradients(x64):
    variant = variants.make("dora", rank=RANK, preconditioner="riemannian")
    targets = {lj.layers("stack", slice(1)): variant, "w": variants.make("lora", rank=RANK)}
    adapted, trainable, frozen = problem(None, targets)
    given = directions(adapted, trainable, frozen, dense_gradients().reshape(-1, SHAPE[1]))
    (adapted_layer, other, w), changed = map(matrices, given)
    np.testing.assert_array_equal(changed[0]["m"], adapted_layer["m"])
    assert (changed[0]["a"] != adapted_layer["a"]).all()
    assert not any(x.any() for each in (other, changed[1]) for x in each.values())
    for factor, gradient in w.items():
        np.testing.assert_array_equal(changed[2][factor], gradient)


def test_the_optimisers_state_is_its_own_and_it_asks_for_the_trainables():
    adapted, trainable, frozen = problem(variants.make("riemannian", rank=RANK))
    given = optax.adam(0.1)
    tx = adapted.optimizer(given, frozen)
    state = tx.init(trainable)
    assert jax.tree.structure(state) == jax.tree.structure(given.init(trainable))
    with pytest.raises(ValueError, match=re.escape("call update(grads, state, trainable)")):
        tx.update(trainable, state)
