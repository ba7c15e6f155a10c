"""Adapters that train together in a bank: each as it would alone, and nothing else."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import own_code
import pytest
from bank_model import SHAPES, STACK, drawn, filled, inputs, moved, trained
from tied_method import Tied

import lora_jax as lj
import variants
from lora_jax.contract.clause import by_numpy

pytestmark = pytest.mark.usefixtures("x64")
SMALL = {"rank": 2, "target_rank": 1, "frequencies": 5}


def two_layers(params, x):
    return jnp.tanh(x @ params["up"]) @ params["head"]


def every_adapter(params, x):
    """Of all methods with code of their own that need no data (with data they make the same
    factors), and of some pairs that differ in what a method's adapters may differ in."""
    lora, dora = variants.make("lora", rank=2, alpha=1.0), variants.make("dora", rank=2)
    cases = [(variants.make("lora", rank=3), {}), (lora, {"also_train": "head"}), (Tied(), {})]
    cases += [(dataclasses.replace(dora, initialization="pissa"), {})]
    cases += [(dataclasses.replace(lora, rank=1, max_rank=2), {})]
    for name in own_code.names():
        usual = variants.make(name)
        own = {field: size for field, size in SMALL.items() if hasattr(usual, field)}
        if usual.adapts and not usual.needs:
            cases.append((variants.make(name, **own), {}))
    for seed, (variant, options) in enumerate(cases):
        adapted = lj.adapt(two_layers, variant, "up", **options)
        trainable, frozen = adapted.init(jax.random.key(seed), params, x[:1])
        yield adapted, (moved(trainable, seed), frozen)


class World:
    """A bank of all adapters and an empty slot, and what one step of AdamW makes of it."""

    def __init__(self):
        self.params, self.x = (drawn(x) for x in ({"up": (4, 6), "head": (6, 3)}, (64, 4)))
        self.found = list(every_adapter(self.params, self.x))
        self.empty = len(self.found) + 1
        self.bank = lj.Bank(two_layers, self.params, self.empty, train=True)
        with jax.disable_jit():  # each put has new arrays, for which programs would be compiled
            for slot, (_, adapter) in enumerate(self.found, 1):
                self.bank = self.bank.put(slot, adapter)
        self.ids = jnp.arange(self.empty + 1)
        self.x, tx = self.x[: len(self.ids)], optax.adamw(1e-2, weight_decay=0.1)

        @jax.jit
        @jax.grad
        def slopes(trainable):
            return (self.bank.with_trainable(trainable).apply(self.ids, self.x) ** 2).sum()

        self.slopes = slopes(self.bank.trainable)

        @jax.jit
        def update(slopes, trainable):
            return optax.apply_updates(
                trainable, tx.update(slopes, tx.init(trainable), trainable)[0]
            )

        with jax.numpy_dtype_promotion("standard"):
            self.updated = update(self.slopes, self.bank.trainable)
        self.stepped = self.bank.with_trainable(self.updated)


@pytest.fixture(scope="module")
def world():
    with jax.enable_x64(True):
        return World()


def with_arrays(bank, arrays):
    held = dataclasses.replace(bank.held, arrays=bank.held.arrays | arrays)
    return dataclasses.replace(bank, held=held)


def test_each_has_the_slopes_that_it_has_alone(world):
    for slot, (adapted, adapter) in enumerate(world.found, 1):
        trainable, frozen = adapter
        chex.assert_trees_all_equal(world.bank.trained(slot, adapter)[0], trainable)

        def loss(own, adapted=adapted, frozen=frozen, slot=slot):
            return (adapted.apply(own, frozen, world.x[slot : slot + 1]) ** 2).sum()

        wanted = by_numpy(jax.grad(loss))(trainable)
        found, _ = with_arrays(world.bank, world.slopes).trained(slot, adapter)
        chex.assert_trees_all_close(found, wanted, rtol=1e-9, atol=1e-12)


def how_many(differ, one, other):
    return sum(
        int(differ(x, y).sum()) for x, y in zip(*map(jax.tree.leaves, (one, other)), strict=True)
    )


def test_a_step_changes_what_adapters_train_and_nothing_else(world):
    """Weight decay changes the arrays of all slots; of them, the bank takes what trains."""
    changed = with_slope = 0
    for slot, (_, adapter) in enumerate(world.found, 1):
        stepped, _ = world.stepped.trained(slot, adapter)
        chex.assert_trees_all_equal(
            stepped, with_arrays(world.bank, world.updated).trained(slot, adapter)[0]
        )
        slopes, _ = with_arrays(world.bank, world.slopes).trained(slot, adapter)
        changed += how_many(np.not_equal, stepped, adapter[0])
        with_slope += how_many(np.not_equal, slopes, jax.tree.map(jnp.zeros_like, slopes))
    before, after = world.bank.trainable, world.stepped.trainable
    assert how_many(np.not_equal, before, after) == changed > 0
    zeros = jax.tree.map(jnp.zeros_like, world.slopes)
    assert how_many(np.not_equal, world.slopes, zeros) == with_slope > 0
    assert how_many(np.not_equal, before, world.updated) > changed


def test_another_adapter_than_that_of_the_slot_is_refused(world):
    (_, first), (_, second) = world.found[:2]
    for slot, adapter in ((1, second), (world.empty, first)):
        with pytest.raises(
            ValueError, match=rf"slot {slot} has not this adapter on '(up|head)': give"
        ):
            world.bank.trained(slot, adapter)
    trainable, frozen = first
    rescaled = {"up": {**frozen.constants["up"], "scale": jnp.asarray(3.0)}}
    with pytest.raises(ValueError, match="slot 1 has not this adapter on 'up'"):
        world.bank.trained(1, (trainable, dataclasses.replace(frozen, constants=rescaled)))


def test_a_bank_that_serves_cannot_be_trained(world):
    bank = lj.Bank(two_layers, world.params, 2)
    with pytest.raises(ValueError, match="make it with train=True"):
        bank.trainable  # noqa: B018
    prepared = world.bank.prepare(world.found[0][1])
    with pytest.raises(ValueError, match="prepared for train=True, and the bank has max_rank=32"):
        bank.put(1, prepared)


def test_what_a_method_shares_trains_in_a_slot_that_has_it_on_some_weights():
    """Another adapter has it on both, and a third has not the method."""
    params, x = (drawn(shape) for shape in ({"up": (4, 4), "head": (4, 4)}, (1, 4)))
    bank, found = lj.Bank(two_layers, params, 3, train=True), []
    for seed, targets in enumerate(("up", ["up", "head"], "head")):
        variant = Tied() if seed < 2 else variants.make("lora", rank=2)
        adapted = lj.adapt(two_layers, variant, targets)
        trainable, frozen = adapted.init(jax.random.key(seed), params, x)
        found.append((moved(trainable, seed), frozen))
        with jax.disable_jit():
            bank = bank.put(seed + 1, found[-1])
    stepped = bank.with_trainable(jax.tree.map(lambda x: x + 1, bank.trainable))
    for slot, adapter in enumerate(found, 1):
        wanted = jax.tree.map(lambda x: x + 1, adapter[0])
        chex.assert_trees_all_equal(stepped.trained(slot, adapter)[0], wanted)
    for key, before in bank.trainable.items():
        if key.part == "shared trainable":
            np.testing.assert_array_equal(
                stepped.trainable[key][jnp.asarray([0, 3])], before[jnp.asarray([0, 3])]
            )


def test_an_adapter_that_trains_less_than_that_of_the_slot_is_refused():
    """They have the same factors and scales."""
    params, x = (drawn(shape) for shape in ({"up": (4, 4), "head": (4, 4)}, (1, 4)))
    more, less = (
        lj.adapt(two_layers, variants.make("lora", rank=2), "up", also_train=also).init(
            jax.random.key(0), params, x
        )
        for also in ("head", ())
    )
    with jax.disable_jit():
        bank = lj.Bank(two_layers, params, 2, train=True).put(1, more)
    chex.assert_trees_all_equal(bank.trained(1, more)[0], more[0])
    with pytest.raises(ValueError, match="slot 1 has not this adapter on 'head'"):
        bank.trained(1, less)


def test_layers_of_one_stack():
    """A layer without an adapter does not train, nor does another adapter's parameter."""
    params, lora = drawn(SHAPES), variants.make("lora", rank=2)
    found = [
        trained(params, None, {lj.layers(STACK, 1): lora}, 1),
        trained(params, lora, [STACK, "table"], 2, also_train="layers/bias"),
    ]
    bank = filled(params, found, train=True)
    ids, batch = jnp.asarray([0, 1, 2, 1]), inputs(4)

    @jax.jit
    @jax.grad
    def slopes(arrays):
        outputs = bank.with_trainable(arrays).apply(ids, *batch)
        return sum((x**2).sum() for x in outputs.values())

    got = slopes(bank.trainable)
    moved = bank.with_trainable(jax.tree.map(lambda x: x + 1, bank.trainable)).trainable
    changed = {
        "layers/bias": np.zeros(3, bool),
        "table": np.zeros(3, bool),
        STACK: np.zeros((2, 3), bool),
    }
    for key, before in bank.trainable.items():
        places = np.not_equal(moved[key], before).reshape(*changed[key.path].shape, -1)
        assert (places.all(-1) == places.any(-1)).all()
        changed[key.path] |= places.all(-1)
        assert not np.any(got[key].reshape(places.shape)[~places.all(-1)])
    assert changed["layers/bias"].tolist() == changed["table"].tolist() == [0, 0, 1]
    assert changed[STACK].tolist() == [[0, 0, 1], [0, 1, 1]]
    adapted, (trainable, frozen) = found[0]

    def loss(own):
        outputs = adapted.apply(own, frozen, *(x[jnp.asarray([1, 3])] for x in batch))
        return sum((x**2).sum() for x in outputs.values())

    wanted = jax.jit(jax.grad(loss))(trainable)["adapters"][STACK]
    own, _ = with_arrays(bank, got).trained(1, found[0][1])
    chex.assert_trees_all_close(own["adapters"][STACK], wanted, rtol=1e-9)
