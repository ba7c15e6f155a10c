"""A loop of one's own in plain Optax, as the README has it: with its three calls and without."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from adalora_net import clipped

import lora_jax as lj
import variants
from lora_jax import train

pytestmark = pytest.mark.usefixtures("quick_compilation", "x64", "standard_promotion")

STEPS = 12
ADALORA = {"rank": 4, "target_rank": 2, "total_steps": STEPS, "t_init": 2, "t_final": 3}
SETTINGS = {"adalora": ADALORA, "lora_plus": {"rank": 3}, "dora": {"rank": 3}}


def forward(params, x):
    return jnp.tanh(x @ params["up"]) @ params["down"] + params["bias"][None]


def problem(name, **settings):
    """An adapted network of two matrices, and batches to learn from."""
    random = np.random.RandomState(0)
    shapes = {"up": (6, 8), "down": (8, 5), "bias": (5,)}
    params = {path: jnp.asarray(random.randn(*shape)) for path, shape in shapes.items()}
    x = random.randn(STEPS, 16, 6)
    batches = [{"x": each, "label": each[:, :5].argmax(1), "weight": np.ones(16)} for each in x]
    variant = variants.make(name, **settings)
    adapted = lj.adapt(forward, variant, ["up", "down"], also_train="bias")
    return adapted, *adapted.init(jax.random.key(0), params, x[0]), batches


def own_loop(adapted, trainable, frozen, batches, tx, without="", clip=np.inf):
    """The trainables and AdaLoRA's state after all batches; `without` names a call to leave out."""
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

    opt_state, state = tx.init(trainable), adapted.init_state(trainable, frozen)
    for number, batch in enumerate(batches):
        trainable, opt_state, state = step(number, trainable, opt_state, state, batch)
    return trainable, state


@pytest.mark.parametrize("mode", ["paper", "reference"])
def test_adalora_ends_at_its_budget(mode, tmp_path):
    """Nothing is said then: a warning is an error in these tests."""
    adapted, trainable, frozen, batches = problem("adalora", mode=mode, **ADALORA)
    trained, state = own_loop(adapted, trainable, frozen, batches, optax.adamw(0.01))
    merged = adapted.merge(trained, frozen)
    assert sum(int((each["e"] != 0).sum()) for each in trained["adapters"].values()) == 2 * 2
    lj.save_adapter(tmp_path / "adapter.safetensors", trained, frozen)
    less, smaller = lj.prune(trained, frozen, state)
    assert sum(int(each) for each in lj.ranks(less, smaller).values()) == 2 * 2
    for path, weight in adapted.merge(less, smaller).items():
        np.testing.assert_allclose(weight, merged[path], atol=1e-12)


def test_adalora_without_update_is_warned_of(tmp_path):
    adapted, *rest = problem("adalora", **ADALORA)
    trained, state = own_loop(adapted, *rest, optax.adamw(0.01), without="update")
    message = r"8 of 8 triplets are in use, the final budget is 4: call adapted\.update\(\.\.\.\)"
    for use in (
        lambda: adapted.merge(trained, rest[1]),
        lambda: lj.save_adapter(tmp_path / "adapter.safetensors", trained, rest[1]),
        lambda: lj.prune(trained, rest[1], state),
    ):
        with pytest.warns(lj.TrainingWarning, match=message) as warned:
            use()
        assert [each.filename for each in warned] == [__file__]


def test_adalora_without_penalty_is_less_orthogonal():
    adapted, *rest = problem("adalora", **ADALORA)

    def error(without=""):
        trained, _ = own_loop(adapted, *rest, optax.adamw(0.01), without=without)
        rows = [each[name] for each in trained["adapters"].values() for name in "ab"]
        return sum(float(jnp.square(x @ x.T - jnp.eye(len(x))).sum()) for x in rows)

    assert error() < 0.9 * error(without="penalty")


def test_lora_plus_without_optimizer_is_lora():
    """Bit by bit; with it, B's first step is four times as long."""
    plus, trainable, frozen, batches = problem("lora_plus", rank=3)
    lora, same, plain, _ = problem("lora", rank=3)
    tx = optax.sgd(0.1)
    forgotten, _ = own_loop(plus, trainable, frozen, batches, tx, without="optimizer")
    wanted, _ = own_loop(lora, same, plain, batches, tx)
    jax.tree.map(np.testing.assert_array_equal, forgotten, wanted)

    faster, _ = own_loop(plus, trainable, frozen, batches[:1], tx)
    wanted, _ = own_loop(lora, same, plain, batches[:1], tx)
    for path, factors in wanted["adapters"].items():
        assert factors["b"].any()
        b = faster["adapters"][path]["b"]
        np.testing.assert_allclose(b, 4.0 * factors["b"], rtol=1e-12)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_librarys_step_is_the_same_loop(name, clip):
    """AdaLoRA's scores and choices included, which see what the optimiser sees."""
    adapted, trainable, frozen, batches = problem(name, **SETTINGS[name])
    tx = optax.adamw(0.01)
    limit = np.inf if clip is None else clip
    ours, variant_state = own_loop(adapted, trainable, frozen, batches, tx, clip=limit)

    def predict(trainable, frozen, batch, rng):
        return adapted.apply(trainable, frozen, batch["x"], dropout_key=rng)

    step = train.make_train_step(adapted, tx, predict, train.cross_entropy, clip=clip)
    donated = jax.tree.map(jnp.copy, trainable)
    state = train.TrainState.create(adapted, tx, donated, frozen, jax.random.key(1))
    for batch in batches:
        state, _ = step(state, frozen, batch)
    pairs = (ours, variant_state), (state.trainable, state.variant_state)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-10), *pairs)
    moved = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), ours, trainable)
    assert min(jax.tree.leaves(moved)) > 1e-3
