"""Which settings of an A/B method are one: exact identities of its steps under Adam.

With gradients only through s AᵀB, and steps that do not depend on the size of a gradient (Adam,
epsilon → 0, no decay, no clipping), trajectories depend on s, on the size of A at the start and on
the two learning rates only through rate_A / size_A and s size_A rate_B.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lora_jax as lj
import variants

pytestmark = pytest.mark.usefixtures("standard_promotion")

STEPS, RATE, RATIO, ALPHA = 12, 1e-2, 2.0, 3.0
KEYS = jax.random.split(jax.random.key(0), 4)
FACTORS = 2.0**-5, 2.0**3
"""Products with them are exact, so that trajectories agree to the bit."""

ADAM = functools.partial(optax.adam, eps=1e-200)


def forward(params, x):
    return jnp.tanh(x @ params["up"]) @ params["down"]


@functools.cache
def weights(name, rate, *, alpha=ALPHA, ratio=RATIO, size=1.0, optimizer=ADAM):
    """The effective weights after `STEPS` steps, in float64."""
    with jax.enable_x64(True):
        params = {
            "up": jax.random.normal(KEYS[0], (5, 6), float),
            "down": jax.random.normal(KEYS[1], (6, 3), float),
        }
        x, y = jax.random.normal(KEYS[2], (7, 5), float), jnp.ones((7, 3), float)
        variant = variants.make(name, rank=2, alpha=alpha, learning_rate_ratio=ratio)
        adapted = lj.adapt(forward, variant, targets=["up", "down"])
        trainable, frozen = adapted.init(KEYS[3], params, x)
        trainable = jax.tree.map_with_path(
            lambda path, each: size * each if "'a'" in str(path) else each, trainable
        )
        tx = adapted.optimizer(optimizer(rate), frozen)

        def loss(trainable):
            return ((adapted.apply(trainable, frozen, x) - y) ** 2).mean()

        def step(state, _):
            trainable, inner = state
            updates, inner = tx.update(jax.grad(loss)(trainable), inner, trainable)
            return (optax.apply_updates(trainable, updates), inner), None

        begun = trainable, tx.init(trainable)
        (trained, _), _ = jax.lax.scan(step, begun, length=STEPS)
        return jax.tree.map(np.asarray, adapted.merge(trained, frozen))


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", ["lora", "dora", "hira"])
@pytest.mark.parametrize("factor", FACTORS)
def test_alpha_is_the_ratio_of_rates(name, factor):
    """B is as much smaller as s is larger. DoRA's magnitude, which also trains, is the same."""
    other = weights(name, RATE, alpha=factor * ALPHA, ratio=RATIO / factor)
    assert_equal(weights(name, RATE), other)


@pytest.mark.parametrize("name", ["lora", "hira"])
@pytest.mark.parametrize("factor", FACTORS)
def test_the_size_of_a_is_a_rate(name, factor):
    """A larger A needs a larger rate, and B as much a smaller one."""
    other = weights(name, factor * RATE, ratio=RATIO / factor**2, size=factor)
    assert_equal(weights(name, RATE), other)


@pytest.mark.parametrize("factor", FACTORS)
def test_gradient_descent_takes_the_square(factor):
    """Its steps are as large as gradients: a scale moves B twice."""
    changed = {"alpha": factor * ALPHA, "ratio": RATIO / factor**2}
    other = weights("lora", RATE, optimizer=optax.sgd, **changed)
    assert_equal(weights("lora", RATE, optimizer=optax.sgd), other)


@pytest.mark.parametrize(
    ("name", "initialization", "size_of"),
    [
        ("lora", "normal", lambda rank: 0.02),
        ("rslora", "normal", lambda rank: 0.02 * math.sqrt(rank)),
        ("lora", "gaussian", lambda rank: 1 / rank),
    ],
)
def test_the_mean_of_the_first_step_has_a_closed_form(name, initialization, size_of):
    """With G the gradient by W, normal A and B = 0, Adam's first step changes W' on average by

        -s rank rate sigma sqrt(2 / pi) G_j / |G_j|    in each column j,

    since E[sign(a . g) a] = sigma sqrt(2 / pi) g / |g|. With s = alpha / rank, the rank counts only
    where sigma has it.

    Args:
      size_of: s rank sigma / alpha.
    """
    draws, size = 4000, 5
    weight, x = jnp.zeros((size, 3)), jax.random.normal(KEYS[2], (7, size))
    pull = jax.random.normal(KEYS[3], (7, 3))

    def forward(params, x):
        return x @ params["w"]

    def change(key, rank):
        variant = variants.make(name, rank=rank, alpha=ALPHA, initialization=initialization)
        adapted = lj.adapt(forward, variant, targets=["w"])
        trainable, frozen = adapted.init(key, {"w": weight}, x)
        optimizer = adapted.optimizer(optax.adam(RATE, eps=1e-30), frozen)
        grads = jax.grad(lambda each: (adapted.apply(each, frozen, x) * pull).sum())(trainable)
        updates, _ = optimizer.update(grads, optimizer.init(trainable), trainable)
        return adapted.apply(optax.apply_updates(trainable, updates), frozen, jnp.eye(size))

    gradient = x.T @ pull
    unit = gradient / jnp.linalg.norm(gradient, axis=0, keepdims=True)
    for rank in (2, 8):
        found = jax.vmap(lambda key, rank=rank: change(key, rank))(
            jax.random.split(jax.random.key(rank), draws)
        )
        wanted = -ALPHA * size_of(rank) * RATE * math.sqrt(2 / math.pi) * unit
        error = found.std(0) / math.sqrt(draws)
        assert (abs(found.mean(0) - wanted) < 4 * error).all()
