"""A loop of one's own in plain Optax, as the README has it: with its three calls and without."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from adalora_net import clipped

import lora_jax as lj
import variants
from lora_jax.training.step import TrainState, cross_entropy, make_train_step

pytestmark = pytest.mark.usefixtures("x64", "standard_promotion")

STEPS = 12
ADALORA = {"rank": 4, "target_rank": 2, "total_steps": STEPS, "t_init": 2, "t_final": 3}
SETTINGS = {"adalora": ADALORA, "lora": {"rank": 3}, "lora_plus": {"rank": 3}}


def forward(params, x):
    return jnp.tanh(x @ params["up"]) @ params["down"] + params["bias"][None]


@functools.cache
def problem(name):
    """An adapted network of two matrices, and batches to learn from."""
    random = np.random.RandomState(0)
    shapes = {"up": (6, 8), "down": (8, 5), "bias": (5,)}
    params = {path: random.randn(*shape) for path, shape in shapes.items()}
    x = random.randn(STEPS, 16, 6)
    batches = [{"x": each, "label": each[:, :5].argmax(1), "weight": np.ones(16)} for each in x]
    variant = variants.make(name, **SETTINGS[name])
    adapted = lj.adapt(forward, variant, ["up", "down"], also_train="bias")
    return adapted, *jax.jit(adapted.init)(jax.random.key(0), params, x[0]), batches


ADAMW, SGD = optax.adamw(0.01), optax.sgd(0.1)


@functools.cache
def own_loop(name, tx=ADAMW, without="", clip=np.inf):
    """The trainables after each batch, and AdaLoRA's last state.

    Args:
      without: a call to leave out.
    """
    adapted, trainable, frozen, batches = problem(name)
    if without != "optimizer":
        tx = adapted.optimizer(tx, frozen)

    def loss(trainable, batch):
        logits = adapted.apply(trainable, frozen, batch["x"])
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        penalty = 0.0 if without == "penalty" else adapted.penalty(trainable, frozen)
        return each.mean() + penalty

    @jax.jit
    def step(number, trainable, opt_state, state, batch):
        grads = clipped(jax.grad(loss)(trainable, batch), clip)
        updates, opt_state = tx.update(grads, opt_state, trainable)
        after = optax.apply_updates(trainable, updates)
        if without != "update":
            state, after = adapted.update(state, trainable, after, grads, number, frozen)
        return after, opt_state, state

    opt_state, state = jax.jit(lambda t: (tx.init(t), adapted.init_state(t, frozen)))(trainable)
    history = []
    for number, batch in enumerate(batches):
        trainable, opt_state, state = step(number, trainable, opt_state, state, batch)
        history.append(trainable)
    return history, state


def test_adalora_ends_at_its_budget(tmp_path):
    """Nothing is said then: a warning is an error in these tests."""
    adapted, _, frozen, _ = problem("adalora")
    (*_, trained), state = own_loop("adalora")
    merged = adapted.merge(trained, frozen)
    assert sum(np.count_nonzero(each["e"]) for each in trained["adapters"].values()) == 2 * 2
    lj.save_adapter(tmp_path / "adapter.safetensors", trained, frozen)
    less, smaller = lj.prune(trained, frozen, state)
    assert sum(int(each) for each in lj.ranks(less, smaller).values()) == 2 * 2
    for path, weight in adapted.merge(less, smaller).items():
        np.testing.assert_allclose(weight, merged[path], atol=1e-12)


def test_adalora_without_update_is_warned_of(tmp_path):
    adapted, _, frozen, _ = problem("adalora")
    (*_, trained), state = own_loop("adalora", without="update")
    message = r"8 of 8 triplets are in use, the final budget is 4: call adapted\.update\(\.\.\.\)"
    for use in (
        lambda: adapted.merge(trained, frozen),
        lambda: lj.save_adapter(tmp_path / "adapter.safetensors", trained, frozen),
        lambda: lj.prune(trained, frozen, state),
    ):
        with pytest.warns(lj.TrainingWarning, match=message) as warned:
            use()
        assert [each.filename for each in warned] == [__file__]


@pytest.mark.parametrize("name, clip", [("adalora", 0.05), ("lora_plus", None)])
def test_the_librarys_step_is_the_same_loop(name, clip):
    """AdaLoRA's scores and choices included, which see what the optimiser sees."""
    adapted, trainable, frozen, batches = problem(name)
    (*_, ours), variant_state = own_loop(name, clip=np.inf if clip is None else clip)

    def predict(trainable, frozen, batch, rng):
        return adapted.apply(trainable, frozen, batch["x"], dropout_key=rng)

    step = make_train_step(adapted, ADAMW, predict, cross_entropy, clip=clip)
    donated = jax.tree.map(lambda x: jnp.asarray(np.array(x)), trainable)
    state = TrainState.create(adapted, ADAMW, donated, frozen, jax.random.key(1))
    for batch in batches:
        state, _ = step(state, frozen, batch)
    pairs = (ours, variant_state), (state.trainable, state.variant_state)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-10), *pairs)
    moved = jax.tree.map(lambda x, y: np.abs(np.asarray(x) - y).max(), ours, trainable)
    assert min(jax.tree.leaves(moved)) > 1e-3
