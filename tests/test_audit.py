"""The audit of a step: NumPy's evaluation against JAX's, and steps that are wrong on purpose."""

import dataclasses
import functools
import math
from importlib.metadata import version
from pathlib import Path

import commands
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import lora_jax as lj
import variants
from lora_jax import audit, jaxpr_memory, train
from lora_jax.by_numpy import ByNumpy, rounded_operands

pytestmark = pytest.mark.usefixtures("standard_promotion")

# -- NumPy's evaluation -------------------------------------------------------------------------


@jax.custom_vjp
def tripled(x):
    return 3 * x


tripled.defvjp(lambda x: (tripled(x), None), lambda _, g: (5 * g,))  # told apart from 3


def looped(x):
    """Reversed and nested loops, what loops carry, branches, calls, remade values."""

    def body(carry, row):
        carry = jax.checkpoint(jnp.tanh)(carry + row)
        return carry, jnp.where(carry > 0, carry, lax.cond(row[0] > 0, jnp.sin, jnp.cos, row))

    last, rows = lax.scan(body, x[0], x, reverse=True)
    times = lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] + c[0]), (0, 1))[1]
    return tripled(times * rows).sum() + jnp.square(last).mean()


def indexed(x):
    """What embeddings, losses and attention do beside products."""
    ids = jnp.argsort(x[0])
    rows = jnp.take_along_axis(x, jnp.broadcast_to(ids, x.shape), axis=1).at[1].add(2 * x[2])
    moved = jnp.pad(x, ((0, 0), (1, 0)))[:, :-1]
    first, second = jnp.split(jnp.concatenate([rows, moved]), [3])
    scores = jnp.einsum("ij,kj->ik", first, second)
    masked = jnp.where(jnp.tril(jnp.ones(scores.shape, bool)), scores, -1e9)
    erfs = lax.erf(rows) + lax.erfc(rows) * lax.rsqrt(1 + rows**2) + lax.integer_pow(rows, -3)
    return (jax.nn.log_softmax(masked).sum() + erfs.sum()) + jnp.cumsum(x[::-1, 1]).max()


def stacked(x):
    """Products with axes in all places, a slice that is moved inside, a clamp."""
    y = lax.dot_general(
        x[:, :, None] * x[None, :1], x.T[:, None] + x[None, :1], (((1,), (2,)), ((2,), (0,)))
    )
    start = jnp.asarray(7)
    cut = lax.dynamic_slice(y, (start, start, start), (1, 2, 1))
    one = jnp.ones((), y.dtype)
    return lax.clamp(-one, y, one).sum() + lax.dynamic_update_slice(y, cut, (0, 0, 0)).sum()


@pytest.mark.parametrize("function", [looped, indexed, stacked])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_value_and_gradient_are_those_of_jax(function, dtype, x64):
    x = np.random.default_rng(0).standard_normal((4, 4)).astype(dtype)
    both = jax.value_and_grad(function)
    closed = jax.make_jaxpr(both)(x)
    value, gradient = ByNumpy(wide=dtype == np.float64)(closed.jaxpr, closed.consts, [x])
    expected = jax.jit(both)(x)
    limit = 1e-12 if dtype == np.float64 else 1e-4
    assert value.dtype == gradient.dtype == dtype
    np.testing.assert_allclose(value, expected[0], rtol=limit)
    np.testing.assert_allclose(gradient, expected[1], rtol=limit, atol=limit)


def test_float64_of_a_program_of_smaller_floats_is_what_it_would_be_without_rounding(x64):
    def function(x, w):
        return jnp.exp((x @ w.astype(jnp.bfloat16)).astype(jnp.float32)).sum(0) / 3

    random = np.random.default_rng(1)
    x, w = random.standard_normal((4, 5)), random.standard_normal((5, 3))
    low = x.astype(jnp.bfloat16), w.astype(np.float32)
    closed = jax.make_jaxpr(function)(*low)
    wide, own = (ByNumpy(each)(closed.jaxpr, closed.consts, low)[0] for each in (True, False))
    exact = np.exp(low[0].astype(float) @ low[1].astype(float)).sum(0) / 3
    np.testing.assert_allclose(wide, exact, rtol=1e-13)
    assert own.dtype == np.float32 and 1e-4 < np.abs(own / exact - 1).max() < 0.05


def test_both_draw_the_same_random_numbers():
    def function(key, x):
        keys = jax.random.split(key, 3)
        masks = lax.scan(lambda _, k: (None, jax.random.bernoulli(k, 0.3, (50,))), None, keys)[1]
        return jnp.where(masks, x, 0.0), jax.random.uniform(jax.random.fold_in(key, 7), (50,))

    given = jax.random.key(3), np.ones(50, np.float32)
    closed = jax.make_jaxpr(function)(*given)
    expected = jax.jit(function)(*given)
    assert 20 < expected[0].sum() < 70
    for wide in (False, True):
        found = ByNumpy(wide)(closed.jaxpr, closed.consts, given)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], np.asarray(expected[1]))


def test_what_other_devices_make_of_the_operands_of_products():
    x = np.random.default_rng(2).standard_normal(1000).astype(np.float32)
    as_tpus_do = rounded_operands("tpu")(x)
    np.testing.assert_array_equal(as_tpus_do, x.astype(jnp.bfloat16).astype(np.float32))
    as_gpus_do = np.abs(rounded_operands("gpu")(x) / x - 1).max()
    assert 2**-12 < as_gpus_do <= 2**-11
    assert rounded_operands("cpu") is None


def test_the_memory_that_it_takes():
    """Of 1,000 numbers: a chain holds two of them beside the argument, a scan all of its rounds."""

    def chain(x):
        for _ in range(5):
            x = jnp.sin(x)
        return x

    def rounds(x):
        return lax.scan(lambda c, _: (jnp.sin(c), c), x, None, length=50)[1].sum()

    x = np.zeros(1000, np.float32)
    of_chain, of_rounds = (
        jaxpr_memory.peak_bytes(jax.make_jaxpr(each)(x).jaxpr) for each in (chain, rounds)
    )
    assert 2 * 8000 <= of_chain <= 3 * 8000
    assert 50 * 8000 <= of_rounds <= 110 * 8000


# -- the step -----------------------------------------------------------------------------------


def forward(params, x):
    return jax.nn.relu(x @ params["up"]["kernel"]) @ params["down"]["kernel"] + params["bias"][None]


def rounding(params, x):
    """The same, of float32 with activations in bfloat16."""
    inside = jax.nn.relu((x @ params["up"]["kernel"]).astype(jnp.bfloat16)).astype(np.float32)
    return inside @ params["down"]["kernel"] + params["bias"][None]


@functools.cache
def made(name, dtype=np.float32, rows=8, function=forward, **settings):
    """A jitted step, and what makes its arguments."""
    random = np.random.default_rng(0)
    drawn = {"up": (12, 16), "down": (16, 10)}
    params = {k: {"kernel": random.standard_normal(s).astype(dtype)} for k, s in drawn.items()}
    params["bias"] = np.zeros(10, dtype)
    also = () if name == "full" else ["bias"]
    adapted = lj.adapt(function, variants.make(name, **settings), also_train=also)
    x = random.standard_normal((rows, 12)).astype(dtype)
    trainable, frozen = jax.jit(adapted.init)(jax.random.key(1), params, x)
    batch = {"x": x, "label": np.arange(rows) % 10, "weight": np.ones(rows, np.float32)}
    tx = optax.adam(1e-2)

    def predict(trainable, frozen, batch, rng):
        outputs = adapted.apply(trainable, frozen, batch["x"], dropout_key=rng)
        return outputs.astype(np.float32)

    parts = 2 if settings else 1
    step = train.make_train_step(adapted, tx, predict, train.cross_entropy, parts, clip=0.5)

    def arguments():
        start = audit.perturbed(trainable)
        state = train.TrainState.create(adapted, tx, start, frozen, jax.random.key(2))
        return state, frozen, batch

    return step, arguments


LORA = ("lora", np.float32, 8)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lora", {"dropout": 0.5}),
        ("dora", {}),
        ("adalora", {"rank": 3, "target_rank": 2, "total_steps": 20}),
        ("full", {}),
    ],
)
def test_a_right_step_passes(name, settings, dtype):
    step, arguments = made(name, dtype, **settings)
    found = audit.audit(step, [("8 rows", arguments)])
    assert found.batches == 1 and not found.left_out
    assert 0 < found.largest.error < found.largest.tolerance  # it did compare something
    if dtype == np.float32:
        assert found.largest.tolerance == audit.FLOOR
    else:
        assert found.largest.tolerance == 4 / 128


@dataclasses.dataclass
class Wrong:
    """A step whose program does not do what its jaxpr says."""

    step: object
    spoil: object

    def trace(self, *arguments):
        return self.step.trace(*arguments)

    def __call__(self, *arguments):
        return self.spoil(*self.step(*arguments))


def spoilt(part, change):
    """Spoils one array of the first moments."""

    def spoil(state, metrics):
        group, *path = part
        leaves = jax.tree_util.tree_map_with_path(
            lambda where, x: change(x) if keys(where)[-len(part) :] == part else x, state.opt_state
        )
        assert path and group == "adapters"
        return dataclasses.replace(state, opt_state=leaves), metrics

    return spoil


def keys(path):
    return tuple(getattr(key, "key", getattr(key, "name", None)) for key in path)


def moved(x, by):
    return x + by * jnp.eye(*x.shape, dtype=x.dtype)


DOWN = ("adapters", "down/kernel", "b")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: moved(x, 1e-4), r"is off by 0\.00\d+, where dtypes explain 3\.8e-06 "),
        (lambda x: moved(x, 1e30), r"is off by \d\.\de\+31"),
        (lambda x: moved(x, math.nan), "is not finite "),
        (lambda x: -x, "is off by"),
        (lambda x: x[::-1], "is off by"),
    ],
)
def test_a_gradient_that_is_wrong_is_named(change, said):
    step, arguments = made(*LORA)
    wrong = Wrong(step, spoilt(DOWN, change))
    with pytest.raises(ValueError, match=said) as caught:
        audit.audit(wrong, [("8 rows", arguments)], advice="do something else")
    message = str(caught.value)
    assert "the gradient of down/kernel/b " in message and "for 8 rows" in message
    assert message.endswith("do something else") and "\n" not in message


def test_a_loss_or_weights_that_are_wrong_are_named():
    step, arguments = made(*LORA)

    def loss(state, metrics):
        return state, {**metrics, "loss": metrics["loss"] * 1.001}

    def weights(state, metrics):
        spoilt = jax.tree.map(lambda x: x.at[0].set(jnp.inf), state.trainable["adapters"])
        return dataclasses.replace(
            state, trainable={**state.trainable, "adapters": spoilt}
        ), metrics

    with pytest.raises(ValueError, match=r": loss is off by 0\.001, where"):
        audit.audit(Wrong(step, loss), [("8 rows", arguments)])
    with pytest.raises(ValueError, match=r": trainable/adapters/\S+ is not finite \("):
        audit.audit(Wrong(step, weights), [("8 rows", arguments)])


def test_dtypes_set_the_tolerance():
    """An error that bfloat16 explains, and float32 does not."""
    change = spoilt(DOWN, lambda x: moved(x, 3e-5))
    for low in (made("lora", jnp.bfloat16), made("lora", function=rounding)):
        step, arguments = low
        found = audit.audit(Wrong(step, change), [("8 rows", arguments)])
        assert found.batches == 1 and 1e-3 < found.largest.tolerance < 0.5
        upside_down = Wrong(step, spoilt(DOWN, jnp.negative))
        with pytest.raises(ValueError, match="the gradient of down/kernel/b is off"):
            audit.audit(upside_down, [("8 rows", arguments)])
    step, arguments = made(*LORA)
    with pytest.raises(ValueError, match="the gradient of down/kernel/b is off"):
        audit.audit(Wrong(step, change), [("8 rows", arguments)])


def test_the_second_of_two_shapes_is_looked_at_too():
    step, arguments = made(*LORA)
    _, frozen, batch = arguments()
    half = {name: value[:4] for name, value in batch.items()}

    def spoil(state, metrics):
        return state, {**metrics, "loss": metrics["loss"] * (1 + calls.pop())}

    calls = [0.0, 0.0]
    cases = [("8 rows", arguments), ("4 rows", lambda: (arguments()[0], frozen, half))]
    assert audit.audit(Wrong(step, spoil), cases).batches == 2 and not calls
    calls = [0.5, 0.0]
    with pytest.raises(ValueError, match=r"wrong for 4 rows: loss is off by 0\.5"):
        audit.audit(Wrong(step, spoil), cases)


def test_each_of_several_trials_is_compared_with_itself():
    """One of small gradients does not hide behind another of large ones."""
    names = ["the gradient of w", "loss"]
    truth = [np.array([[1e6, 1e6], [1e-3, 1e-3]]), np.array([1.0, 2.0])]
    given = [truth[0] + [[0, 0], [0, 1e-4]], truth[1]]
    found = audit.worst(names, given, truth, trials=2)
    assert found.leaf == names[0] and found.error == pytest.approx(0.1 / math.sqrt(2))
    assert audit.worst(names, truth, truth, trials=2).error == 0


def test_all_gradients_are_alive_where_it_looks():
    step, arguments = made(*LORA)
    state, *rest = arguments()
    start = jax.tree.map(np.array, state.trainable)
    state, _ = step(state, *rest)
    moments = state.opt_state[0].mu
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(moments))
    again = jax.tree.map(np.array, arguments()[0].trainable)
    assert all(map(np.array_equal, *map(jax.tree.leaves, (start, again))))


def test_nothing_is_said_where_nothing_can_be():
    step, arguments = made(*LORA)
    found = audit.audit(step, [("8 rows", arguments)], room=100)
    assert found.values() is None
    assert "NumPy it takes 0.0 GiB, and 0.0 are free" in found.left_out["8 rows"]

    def overflowing():
        state, frozen, batch = arguments()
        return state, frozen, {**batch, "x": batch["x"] * np.float32(1e38)}

    found = audit.audit(step, [("8 rows", overflowing)])
    assert found.values() is None and "not finite" in found.left_out["8 rows"]


def test_a_gradient_is_needed():
    def step(state, frozen, batch):
        return {"count": state["count"] + 1}, {"loss": state["count"] * 1.0}

    with pytest.raises(ValueError, match="keeps no first moment"):
        audit.audit(jax.jit(step), [("", lambda: ({"count": jnp.zeros(())}, None, None))])


# -- the fault that it is for ---------------------------------------------------------------------

FAULTY = ("0.10.2",)
"""Releases of jaxlib in which this program was seen to be wrong."""


@pytest.mark.skipif(version("jaxlib") not in FAULTY, reason="of another release of jaxlib")
@pytest.mark.parametrize(("fusions", "said"), [("+reduce", "stopped: "), ("-reduce", "passed: 1")])
def test_a_program_that_the_compiler_gets_wrong_is_stopped(fusions, said):
    flag = f"--xla_cpu_experimental_ynn_fusion_type={fusions}"
    done = commands.run(Path("tests") / "faulty_step.py", XLA_FLAGS=flag, JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(said)
    if fusions == "+reduce":
        assert ": the gradient of scale is " in done.stdout
