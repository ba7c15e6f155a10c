"""Optimisers by name, on adapted weights, against Optax's own and NumPy references."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import lora_jax as lj
import variants
from lora_jax.sharding.layout import lay_out
from lora_jax.training import optim, optimizers
from lora_jax.training.optimizers import KINDS
from lora_jax.training.step import TrainState, eval_params, make_step, make_train_step
from lora_jax.transform.adapted_optimizer import axes_of_matrices

pytestmark = pytest.mark.usefixtures("standard_promotion")

NUMBERS = {"weight_decay": 0.1, "b1": 0.8, "b2": 0.95, "eps": 0.02, "momentum": 0.7}
RATE = 0.05


def rate(count):
    return jnp.where(count < 1, RATE / 2, RATE)


def forward(params, x):
    x = jnp.tanh(x @ params["first"]["kernel"])
    return x @ params["head"]["kernel"] + params["head"]["bias"][None]


def parameters():
    random = np.random.default_rng(0)
    return {
        "first": {"kernel": jnp.asarray(random.normal(size=(6, 5)), jnp.float32)},
        "head": {
            "kernel": jnp.asarray(random.normal(size=(5, 3)), jnp.float32),
            "bias": jnp.zeros(3),
        },
    }


def adapted_by(name, **settings):
    variant = variants.make(name, **settings)
    targets = ["first/kernel"]
    also = () if name == "full" else ["head/.*"]
    made = lj.adapt(forward, variant, targets, also)
    return made, *made.init(jax.random.key(0), parameters(), jnp.zeros((1, 6)))


def gradients(trainable, step):
    """Any gradients: the same for an optimiser and its reference."""
    return jax.tree.map(lambda x: jnp.cos(x * 3 + step).astype(x.dtype), trainable)


def stepped(tx, trainable, steps=4):
    state = tx.init(trainable)

    @jax.jit
    def advance(trainable, state, step):
        updates, state = tx.update(gradients(trainable, step), state, trainable)
        return optax.apply_updates(trainable, updates), state

    for step in range(steps):
        trainable, state = advance(trainable, state, step)
    return trainable, state


def made(name, adapted, frozen):
    kind = KINDS[name]
    numbers = {each: NUMBERS[each] for each in ("weight_decay", *kind.reads)}
    return adapted.optimizer(kind.make(rate, numbers), frozen)


def decay(trainable):
    return {**jax.tree.map(lambda _: True, trainable), "params": _decays(trainable["params"])}


def _decays(params):
    return {path: not path.endswith("bias") for path in params}


def test_each_steps_as_optax_has_it():
    """On LoRA's factors and a head; decay spares the bias."""
    adapted, trainable, frozen = adapted_by("lora", rank=2)
    common = {"weight_decay": NUMBERS["weight_decay"], "mask": decay}
    references = {
        "sgd": optax.chain(
            optax.trace(NUMBERS["momentum"]),
            optax.add_decayed_weights(NUMBERS["weight_decay"], mask=decay),
            optax.scale_by_learning_rate(rate),
        ),
        "lion": optax.lion(rate, b1=NUMBERS["b1"], b2=NUMBERS["momentum"], **common),
        "adamw": optax.adamw(rate, b1=0.8, b2=0.95, eps=NUMBERS["eps"], **common),
    }
    for name, reference in references.items():
        ours, _ = stepped(made(name, adapted, frozen), trainable)
        theirs, _ = stepped(reference, trainable)
        for mine, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(mine, wanted, rtol=1e-5, atol=1e-6, err_msg=name)


def test_adafactor_factors_moments_and_is_the_papers_algorithm():
    matrix = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)
    trainable = {"adapters": {}, "params": {"kernel": matrix}}
    tx = optimizers.adafactor(rate, {"weight_decay": 0.1}, smallest=3)
    ours, _ = stepped(tx, trainable, steps=3)
    w = np.asarray(matrix, np.float64)
    rows, columns = np.zeros(4), np.zeros(3)
    for step in range(3):
        g = np.cos(w * 3 + step)
        keep = 1 - (step + 1) ** -0.8
        rows = keep * rows + (1 - keep) * (g**2).mean(1)
        columns = keep * columns + (1 - keep) * (g**2).mean(0)
        update = g / np.sqrt(np.outer(rows, columns) / rows.mean())
        update /= max(1.0, np.sqrt((update**2).mean()))
        w -= float(rate(step)) * (update + 0.1 * w)
    np.testing.assert_allclose(ours["params"]["kernel"], w, rtol=1e-4, atol=1e-5)


def test_muon_steps_matrices_towards_orthogonal_ones_and_the_rest_as_adamw():
    """Of a stack each by itself; five iterations leave singular values between 0.5 and 1.5."""
    params = {
        "stack": jax.random.normal(jax.random.key(1), (2, 6, 6)),
        "bias": jnp.ones(6),
        "table": jax.random.normal(jax.random.key(2), (8, 6)),
        "wide": jax.random.normal(jax.random.key(3), (6, 96)),
        "narrow": jax.random.normal(jax.random.key(4), (96, 6)),
    }

    def model(params, ids):
        x = params["table"][ids]
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["stack"])
        return jnp.tanh(x @ params["wide"]) @ params["narrow"] + params["bias"][None]

    adapted = lj.adapt(model, variants.make("full"))
    trainable, frozen = adapted.init(jax.random.key(0), params, jnp.zeros(2, jnp.int32))
    axes = axes_of_matrices(frozen)
    numbers = {**NUMBERS, "weight_decay": 0.0}
    tx = optimizers.muon(rate, numbers, axes)
    rest = {**trainable, "params": {path: params[path] for path in ("bias", "table")}}
    adam = optax.adam(rate, b1=0.8, b2=0.95, eps=NUMBERS["eps"])
    found, wanted = stepped(tx, rest)[0], stepped(adam, rest)[0]
    for path in ("bias", "table"):
        np.testing.assert_allclose(found["params"][path], wanted["params"][path], rtol=1e-5)
    ours, _ = stepped(tx, trainable, steps=1)
    change = jax.tree.map(lambda x, y: np.asarray(x - y), trainable, ours)["params"]
    grads = jax.tree.map(np.asarray, gradients(trainable, 0)["params"])
    pairs = [*zip(change["stack"], grads["stack"], strict=True)]
    pairs += [(change[path], grads[path]) for path in ("wide", "narrow")]
    for update, gradient in pairs:
        u, _, v = np.linalg.svd(gradient, full_matrices=False)
        scale = optimizers.RMS_OF_MUON * np.sqrt(max(gradient.shape)) * float(rate(0))
        in_its_basis = u.T @ update @ v.T / scale
        values = np.diag(in_its_basis)
        assert 0.3 < values.min() <= values.max() < 1.5
        np.testing.assert_allclose(in_its_basis - np.diag(values), 0, atol=1e-3)


@pytest.mark.parametrize("name", KINDS)
def test_only_elementwise_kinds_step_the_same_beside_rows_of_zeros(name):
    """Gradients grow, as that of a step which is clipped; there are more rows than inputs."""
    adapted, own, frozen = adapted_by("lora", rank=2)
    _, more, _ = adapted_by("lora", rank=2, max_rank=8)
    tx = made(name, adapted, frozen)

    def like(tree, wanted):
        return jax.tree.map(
            lambda x, y: jnp.pad(x, [(0, y.shape[0] - x.shape[0]), *[(0, 0)] * (x.ndim - 1)]),
            tree,
            wanted,
        )

    narrow, wider = own, like(own, more)
    states = tx.init(narrow), tx.init(wider)
    for step in range(3):
        grads = jax.tree.map(lambda x, step=step: 10.0**step * x, gradients(own, step))
        both = (grads, narrow, states[0]), (like(grads, more), wider, states[1])
        found = [tx.update(each, state, trainable) for each, trainable, state in both]
        states = tuple(state for _, state in found)
        narrow, wider = (
            optax.apply_updates(trainable, updates)
            for trainable, (updates, _) in zip((narrow, wider), found, strict=True)
        )
    pairs = zip(*map(jax.tree.leaves, (like(narrow, more), wider)), strict=True)
    same = all(np.allclose(one, other, rtol=1e-5, atol=1e-6) for one, other in pairs)
    assert same == KINDS[name].elementwise


def test_muon_takes_factors_as_matrices_and_magnitudes_as_vectors():
    _, trainable, frozen = adapted_by("dora", rank=2)
    axes = axes_of_matrices(frozen)
    found = {
        jax.tree_util.keystr(keys[-1:], simple=True): axes(keys, leaf)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(trainable["adapters"])
        for keys in [(jax.tree_util.DictKey("adapters"), *keys)]
    }
    assert found.pop("a") == found.pop("b") == ((-2,), (-1,))
    assert set(found.values()) == {None}


def test_muon_takes_a_shared_array_as_a_matrix_whose_number_is_the_path_of_a_stack():
    def model(params, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params[0])[0]

    adapted = lj.adapt(model, variants.make("vblora", rank=2, num_vectors=5, vector_length=3))
    trainable, frozen = adapted.init(jax.random.key(0), [jnp.ones((2, 6, 6))], jnp.ones((1, 6)))
    axes = axes_of_matrices(frozen)
    found = {
        jax.tree_util.keystr(keys, simple=True, separator="/"): axes(keys, leaf)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(trainable)
    }
    assert found == {"adapters/0/a": None, "adapters/0/b": None, "shared/0/bank": ((-2,), (-1,))}


def test_schedule_free_is_the_authors_algorithm():
    """AdamWScheduleFree of Meta's schedule_free, by NumPy.

    A step's weight is the square of the largest rate so far. After a warm-up, that is its own.
    """
    adapted, trainable, frozen = adapted_by("lora", rank=2)
    b1, b2, eps, steps = 0.8, 0.95, NUMBERS["eps"], 4
    kind, numbers = KINDS["schedule_free"], {"weight_decay": 0.0, "b1": b1, "b2": b2, "eps": eps}
    ours, state = stepped(adapted.optimizer(kind.make(rate, numbers), frozen), trainable, steps)
    x, z, y = (jax.tree.map(np.asarray, trainable) for _ in range(3))
    squares, total = jax.tree.map(np.zeros_like, x), 0.0
    for step in range(steps):
        own = float(rate(step))
        total += own**2
        grads = jax.tree.map(np.asarray, gradients(y, step))
        squares = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, squares, grads)
        correction = 1 - b2 ** (step + 1)
        z = jax.tree.map(
            lambda z, g, v, own=own, c=correction: z - own * g / (np.sqrt(v / c) + eps),
            *(z, grads, squares),
        )
        share = own**2 / total
        x = jax.tree.map(lambda x, z, c=share: (1 - c) * x + c * z, x, z)
        y = jax.tree.map(lambda x, z: b1 * x + (1 - b1) * z, x, z)
    whole = TrainState(jnp.zeros(()), ours, state, (), jax.random.key(0))
    for found, wanted in ((ours, y), (eval_params(whole), x)):
        for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=2e-6)


def test_schedule_free_averages_steps_at_the_rates_of_factors():
    """On gradients of 1, LoRA+'s B is the average of steps that are four times as long as A's."""
    adapted, trainable, frozen = adapted_by("lora", rank=2, learning_rate_ratio=4.0)
    numbers = {"weight_decay": 0.0, "b1": 0.8, "b2": 0.95, "eps": 1e-12}
    tx = adapted.optimizer(KINDS["schedule_free"].make(lambda _: RATE, numbers), frozen)
    state, now = tx.init(trainable), trainable
    for _ in range(3):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, now), state, now)
        now = optax.apply_updates(now, updates)
    ends = eval_params(TrainState(jnp.zeros(()), now, state, (), jax.random.key(0)))
    before, after = (each["adapters"]["first/kernel"] for each in (trainable, ends))
    # The steps end at 1, 2 and 3 times the rate, and all of them weigh the same.
    np.testing.assert_allclose(after["a"], before["a"] - 2 * RATE, atol=1e-5)
    np.testing.assert_allclose(after["b"], before["b"] - 4 * 2 * RATE, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_the_steps_of_a_head_alone_are_multiplied(name):
    """A first step is as long as its rate, also where steps are averaged."""
    adapted, trainable, frozen = adapted_by("lora", rank=2)
    kind, numbers = KINDS[name], {**NUMBERS, "weight_decay": 0.0}
    tx = kind.make(rate, {each: numbers[each] for each in ("weight_decay", *kind.reads)})
    longer = optimizers.scaled(tx, optim.scale_params(["head/.*"], 3.0))
    plain, scaled = (
        adapted.optimizer(each, frozen).update(
            gradients(trainable, 0), adapted.optimizer(each, frozen).init(trainable), trainable
        )[0]
        for each in (tx, longer)
    )
    wanted = {**plain, "params": jax.tree.map(lambda update: 3 * update, plain["params"])}
    chex.assert_trees_all_close(scaled, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_a_step_lowers_the_loss_of_adapted_weights(name):
    """With an average, which is the mean of the weights after both steps."""
    adapted, trainable, frozen = adapted_by("lora", rank=2, learning_rate_ratio=2.0)
    kind, numbers = KINDS[name], {"momentum": 0.5}
    numbers |= {"weight_decay": 0.0, "b1": 0.9, "b2": 0.99, "eps": 1e-8}
    tx = kind.make(lambda _: 0.01, {n: numbers[n] for n in ("weight_decay", *kind.reads)})
    x = jax.random.normal(jax.random.key(3), (8, 6))
    batch = {"x": x, "label": jnp.sin(x[:, :3]), "weight": jnp.ones(8)}
    step = make_step(
        adapted,
        lambda trainable, frozen, batch, rng: adapted.apply(trainable, frozen, batch["x"]),
        lambda outputs, batch: jnp.square(outputs - batch["label"]).sum(1),
    )
    jitted = jax.jit(lambda state, batch: step(tx, None, state, frozen, batch, 0.5))
    state = TrainState.create(adapted, tx, trainable, frozen, jax.random.key(0), averaged=True)
    losses, seen = [], []
    for _ in range(3):
        state, values = jitted(state, batch)
        losses.append(float(values["loss"]))
        seen.append(state.trainable)
    assert losses[2] < losses[1] < losses[0]
    means = jax.tree.map(lambda *x: (x[0] / 4 + x[1] / 2 + x[2]) / 1.75, *seen)
    found = jax.tree.leaves(eval_params(state))
    for mine, wanted in zip(found, jax.tree.leaves(means), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["adafactor", pytest.param("muon", marks=pytest.mark.slow)])
def test_steps_on_a_mesh_are_those_of_one_device(name):
    """Factored moments have other shapes than weights; an average has the same."""
    numbers = {each: jnp.asarray(value) for each, value in NUMBERS.items()}
    random = np.random.default_rng(0)
    weights = {"kernel": random.normal(size=(8, 4)), "head": random.normal(size=(4, 4))}
    params = {each: jnp.asarray(value) for each, value in weights.items()}
    x = random.normal(size=(8, 8))
    batch = {"x": x, "label": np.sin(x[:, :4]), "weight": np.ones(8)}

    def model(params, x):
        return jnp.tanh(x @ params["kernel"]) @ params["head"]

    adapted = lj.adapt(model, variants.make("full"))
    axes = axes_of_matrices(adapted.init(jax.random.key(0), params, x)[1])
    tx = optimizers.adafactor(rate, numbers, smallest=4)
    tx = optimizers.muon(rate, numbers, axes) if name == "muon" else tx

    def trained(layout):
        trainable, frozen = (layout or adapted).init(jax.random.key(0), params, x)

        def start(trainable, frozen):
            key = jax.random.key(2)
            return TrainState.create(adapted, tx, trainable, frozen, key, averaged=True)

        like = layout and layout.like(jax.eval_shape(start, trainable, frozen))
        step = make_train_step(
            adapted,
            tx,
            lambda trainable, frozen, batch, rng: adapted.apply(trainable, frozen, batch["x"]),
            lambda outputs, batch: jnp.square(outputs - batch["label"]).sum(1),
            shardings=like,
            ema=0.5,
        )
        state = jax.jit(start, out_shardings=like)(trainable, frozen)
        for _ in range(2):
            state, _ = step(state, frozen, jax.device_put(batch, layout and layout.rows))
        return state, eval_params(state)["params"]

    rules = (("kernel", P("fsdp", "tensor")), ("head", P("tensor", "fsdp")))
    mesh = lj.make_mesh(2, 2, 2)
    state, there = trained(lay_out(adapted, mesh, rules, params, x))
    for path, mine in trained(None)[1].items():
        np.testing.assert_allclose(there[path], mine, rtol=1e-10)
    assert state.average.sums["params"]["kernel"].sharding.spec == P("fsdp", "tensor")
