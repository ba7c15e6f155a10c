"""The audit of a step: right ones pass, and those that are wrong on purpose are named."""

import dataclasses
import functools
import math
import re
from importlib.metadata import version
from pathlib import Path

import commands
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lora_jax as lj
import variants
from lora_jax.compiled import audit
from lora_jax.compiled.compiler_faults import is_faulty
from lora_jax.training.step import TrainState, cross_entropy, make_train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")


def forward(params, x):
    return jax.nn.relu(x @ params["up"]["kernel"]) @ params["down"]["kernel"] + params["bias"][None]


def rounding(params, x):
    """The same, of float32 with activations in bfloat16."""
    inside = jax.nn.relu((x @ params["up"]["kernel"]).astype(jnp.bfloat16)).astype(np.float32)
    return inside @ params["down"]["kernel"] + params["bias"][None]


@functools.cache
def made(name, dtype=np.float32, rows=8, function=forward, storage=None, rate=1e-2, **settings):
    """A jitted step, and what makes its arguments."""
    random = np.random.default_rng(0)
    drawn = {"up": (12, 16), "down": (16, 10)}
    params = {k: {"kernel": random.standard_normal(s).astype(dtype)} for k, s in drawn.items()}
    params["bias"] = np.zeros(10, dtype)
    also = () if name == "full" else ["bias"]
    adapted = lj.adapt(
        function,
        variants.make(name, **settings),
        "all-linear",
        also,
        storage and {"kernel": storage},
    )
    x = random.standard_normal((rows, 12)).astype(dtype)
    trainable, frozen = jax.jit(adapted.init)(jax.random.key(1), params, x)
    batch = {"x": x, "label": np.arange(rows) % 10, "weight": np.ones(rows, np.float32)}
    tx = optax.adam(rate)

    def predict(trainable, frozen, batch, rng):
        outputs = adapted.apply(trainable, frozen, batch["x"], dropout_key=rng)
        return outputs.astype(np.float32)

    parts = 2 if settings else 1
    step = make_train_step(adapted, tx, predict, cross_entropy, parts, clip=0.5)

    def arguments():
        start = audit.perturbed(trainable)
        state = TrainState.create(adapted, tx, start, frozen, jax.random.key(2))
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
        (lambda x: moved(x, 1e-4), r"is off by 0\.00\d+, and dtypes explain only 3\.8e-06 "),
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

    with pytest.raises(ValueError, match=r": loss is off by 0\.001, and"):
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


@pytest.mark.parametrize("explained", [audit.MULTIPLE, 1e4])
def test_a_gradient_of_zeros_is_refused_whatever_dtypes_explain(explained, monkeypatch):
    monkeypatch.setattr(audit, "MULTIPLE", explained)
    step, arguments = made("lora", jnp.bfloat16)

    def nothing(state, metrics):
        one = jax.tree_util.tree_map_with_path(
            lambda where, x: jnp.zeros_like(x) if "mu" in keys(where) else x, state.opt_state
        )
        return dataclasses.replace(state, opt_state=one), metrics

    assert audit.audit(step, [("8 rows", arguments)]).largest.tolerance <= audit.MOST
    with pytest.raises(ValueError, match=r"is off by (1|0\.[5-9]).*, and dtypes explain only 0"):
        audit.audit(Wrong(step, nothing), [("8 rows", arguments)])


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


@dataclasses.dataclass
class Misreads:
    """A step whose program reads other numbers than it is given."""

    step: object
    other: object

    def trace(self, *arguments):
        return self.step.trace(*arguments)

    def __call__(self, state, frozen, batch):
        return self.step(state, *self.other(frozen, batch))


def first_part_again(frozen, batch):
    """In the place of the second one, of two: a part has every other row."""
    return frozen, {name: array[::2].repeat(2, 0) for name, array in batch.items()}


def another_code(frozen, batch):
    """The lower bits of the first stored weights are others."""

    def other(x):
        first = (0,) * x.ndim
        return x.at[first].set(x[first] ^ 15) if x.dtype.itemsize == 1 else x

    return dataclasses.replace(frozen, base=jax.tree.map(other, frozen.base)), batch


@pytest.mark.parametrize("storage", [lj.NF4(block=8), lj.Int8()], ids=type)
def test_weights_in_bits_and_a_batch_in_parts(storage):
    step, arguments = made("lora", storage=storage, dropout=0.5)
    assert audit.audit(step, [("8 rows", arguments)]).largest.tolerance == audit.FLOOR
    for other in (first_part_again, another_code):
        with pytest.raises(ValueError, match="is off by"):
            audit.audit(Misreads(step, other), [("8 rows", arguments)])


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
    assert "by NumPy takes 0.0 GiB, and 0.0 GiB are free" in found.left_out["8 rows"]

    def overflowing():
        state, frozen, batch = arguments()
        return state, frozen, {**batch, "x": batch["x"] * np.float32(1e38)}

    found = audit.audit(step, [("8 rows", overflowing)])
    assert found.values() is None and "not finite" in found.left_out["8 rows"]


def test_weights_that_no_arithmetic_holds_are_not_the_compilers_fault():
    found = audit.audit(*one_case(*made(*LORA, rate=math.inf)))
    assert found.values() is None
    assert re.search("adapters/.* is not finite in NumPy's evaluation", found.left_out["8 rows"])


def one_case(step, arguments):
    return step, [("8 rows", arguments)]


def test_a_gradient_is_needed():
    def step(state, frozen, batch):
        return {"count": state["count"] + 1}, {"loss": state["count"] * 1.0}

    with pytest.raises(ValueError, match="keeps no first moment"):
        audit.audit(jax.jit(step), [("", lambda: ({"count": jnp.zeros(())}, None, None))])


# -- the fault that it is for ---------------------------------------------------------------------


@pytest.mark.skipif(not is_faulty(version("jaxlib")), reason="this jaxlib has not got the fault")
@pytest.mark.parametrize(("fusions", "said"), [("+reduce", "stopped: "), ("-reduce", "passed: 1")])
def test_a_program_that_the_compiler_gets_wrong_is_stopped(fusions, said):
    flag = f"--xla_cpu_experimental_ynn_fusion_type={fusions}"
    done = commands.run(
        Path("tests") / "support" / "faulty_step.py", XLA_FLAGS=flag, JAX_PLATFORMS="cpu"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(said)
    if fusions == "+reduce":
        assert ": the gradient of scale is " in done.stdout
