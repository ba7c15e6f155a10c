"""The audit of steps on a mesh: what one device alone has wrong is found, and XLA's own fault."""

import contextlib
import dataclasses
import functools
import math

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from test_audit import Wrong, forward, keys

import lora_jax as lj
import variants
from lora_jax.compiled import audit
from lora_jax.sharding.layout import lay_out
from lora_jax.training.step import TrainState, cross_entropy, make_train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")


def stepping(function, params, x, adapted, rules, sizes):
    """A jitted step on a mesh, and what makes its arguments."""
    mesh = lj.make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    layout = lay_out(adapted, mesh, rules, params, x)
    trainable, frozen = layout.init(jax.random.key(1), params, x)
    batch = {"x": x, "label": np.arange(len(x)) % 10, "weight": np.ones(len(x), np.float32)}
    batch, tx = jax.device_put(batch, layout.rows), optax.adam(1e-2)

    def start(trainable, frozen):
        return TrainState.create(adapted, tx, trainable, frozen, jax.random.key(2))

    def predict(trainable, frozen, batch, rng):
        return adapted.apply(trainable, frozen, batch["x"], dropout_key=rng)

    shardings = layout.like(jax.eval_shape(start, trainable, frozen))
    step = make_train_step(adapted, tx, predict, cross_entropy, clip=0.5, shardings=shardings)

    def arguments():
        near = audit.perturbed(trainable)
        return jax.jit(start, out_shardings=shardings)(near, frozen), frozen, batch

    return step, arguments


@functools.cache
def made():
    """Two matrices on four devices: the second is stored in bits, and all axes are cut."""
    random = np.random.default_rng(0)
    drawn = {"up": (12, 16), "down": (16, 10)}
    params = {k: {"kernel": random.standard_normal(s, np.float32)} for k, s in drawn.items()}
    params["bias"] = np.zeros(10, np.float32)
    storage = {"down/kernel": lj.NF4(block=4)}
    adapted = lj.adapt(
        forward, variants.make("lora", dropout=0.5), also_train=["bias"], quantize=storage
    )
    rules = [
        ("up/kernel", P("fsdp", "tensor")),
        ("down/kernel", P("tensor", "fsdp")),
        ("bias", P()),
    ]
    x = random.standard_normal((8, 12), np.float32)
    return stepping(forward, params, x, adapted, rules, (2, 2, 2))


def test_a_right_step_passes_and_is_the_one_that_trains(compilations):
    step, arguments = made()
    found = audit.audit(step, [("8 rows", arguments)])
    assert found.batches == 1 and not found.left_out
    assert 0 < found.largest.error < found.largest.tolerance == audit.FLOOR
    given = arguments()
    with compilations() as counted:
        step(*given)
    assert not counted


@pytest.mark.parametrize("leaf", ["a", "b", "bias"])
@pytest.mark.parametrize("device", [0, 5])
def test_what_one_device_has_wrong_is_found(leaf, device):
    """Its part of a gradient, or its copy, where the others' are right."""

    def spoilt(where, x):
        if not {leaf, "mu"} < set(keys(where)):
            return x
        parts = [each.data for each in x.addressable_shards]
        parts[device] = -parts[device]
        return jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)

    def spoil(state, metrics):
        moments = jax.tree_util.tree_map_with_path(spoilt, state.opt_state)
        return dataclasses.replace(state, opt_state=moments), metrics

    step, arguments = made()
    with pytest.raises(ValueError, match=rf"gradient of \S*{leaf} is off by"):
        audit.audit(Wrong(step, spoil), [("8 rows", arguments)])


def test_a_gradient_that_the_compiler_sums_wrongly_over_devices_is_stopped():
    """In a scan whose matrices are all cut one way (see `test_mesh_training`), where XLA is of a
    version that does so: the gradient of one device tells."""
    random = np.random.default_rng(0)
    params = {
        "up": random.standard_normal((2, 16, 32), np.float32) / 4,
        "down": random.standard_normal((2, 32, 16), np.float32) / 4,
        "scale": np.ones((2, 32), np.float32),
    }

    def scanned(params, x):
        def layer(x, each):
            y = jax.numpy.tanh((x @ each["up"]) * each["scale"][None])
            return x + y @ each["down"], None

        return jax.lax.scan(layer, x, params)[0]

    cut = P(None, "fsdp", "tensor")
    x = random.standard_normal((8, 16), np.float32)
    adapted = lj.adapt(scanned, variants.make("full"), "scale")

    def moments(rules, sizes):
        step, arguments = made = stepping(scanned, params, x, adapted, rules, sizes)
        state, _ = step(*arguments())
        return jax.device_get(optax.tree.get(state.opt_state, "mu")), made

    other, vectors = ("down", P(None, "tensor", "fsdp")), ("scale", P())
    truth, _ = moments([("up|down", cut), vectors], (1, 1, 1))
    for rules in ([("up", cut), other, vectors], [("up|down", cut), vectors]):
        found, (step, arguments) = moments(rules, (2, 2, 2))
        off = optax.tree.norm(optax.tree.sub(found, truth)) / optax.tree.norm(truth)
        assert off < 1e-5 or off > 0.1
        with contextlib.nullcontext() if off < 1e-5 else pytest.raises(ValueError, match="is off"):
            assert audit.audit(step, [("8 rows", arguments)]).batches == 1
