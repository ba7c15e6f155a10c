"""LoRA+ gives B a learning rate of its own, and so do the methods that take its ratio."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo.check as check
from two_layer_net import training, two_layers

import lora_jax as lj
import variants
from variants.lora import LoRA

KEY = jax.random.key(0)


def one_step(adapted, params, x, tx, ratio=None):
    """What one step of an optimiser changes, perhaps at another ratio."""
    trainable, frozen = adapted.init(KEY, params, x)
    if ratio is not None:
        constants = {
            path: {**each, "ratio": jnp.broadcast_to(ratio, each["ratio"].shape)}
            for path, each in frozen.constants.items()
        }
        frozen = dataclasses.replace(frozen, constants=constants)
    tx = adapted.optimizer(tx, frozen)
    moved = jax.tree.map(jnp.add, trainable, check.random_like(trainable, 2))
    gradient = jax.grad(lambda t: jnp.sum(adapted.apply(t, frozen, x) ** 2))(moved)
    return tx.update(gradient, tx.init(moved), moved)[0]


OWN = {"adalora": {"target_rank": 1}, "vblora": {"num_vectors": 5, "vector_length": 1}}


@pytest.mark.parametrize("name", ["lora_plus", "dora", "lora_fa", "adalora", "vera", "vblora"])
def test_only_b_has_its_own_rate(name, x64, standard_promotion):
    """In VB-LoRA the logits of both have it, and not the bank."""
    settings = {"rank": 2} | OWN.get(name, {})
    plain = variants.make(name, learning_rate_ratio=1.0, **settings)
    fast = dataclasses.replace(plain, learning_rate_ratio=7.0)
    tx = optax.adamw(0.1) if name == "dora" else optax.sgd(0.1)
    (adapted, params, x), (faster, _, _) = map(training, (plain, fast))
    wanted, got = jax.jit(
        lambda params, x: [one_step(each, params, x, tx) for each in (adapted, faster)]
    )(params, x)
    np.testing.assert_array_equal(got["params"]["bias"], wanted["params"]["bias"])
    for one, other in zip(
        *(jax.tree.leaves(each.get("shared")) for each in (got, wanted)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    for path, updates in wanted["adapters"].items():
        for factor, update in updates.items():
            ratio = 7.0 if factor == "b" or name == "vblora" else 1.0
            update = np.asarray(update)
            assert update.any()
            np.testing.assert_allclose(got["adapters"][path][factor], ratio * update, rtol=1e-12)


def test_without_a_ratio_the_optimiser_is_the_given_one():
    adapted, *given = training(variants.make("lora_plus", rank=2, learning_rate_ratio=1.0))
    _, frozen = jax.eval_shape(adapted.init, KEY, *given)
    tx = optax.sgd(0.1)
    assert adapted.optimizer(tx, frozen) is tx
    assert variants.make("lora_plus").learning_rate_ratio == 4.0


def test_ratios_are_traced(x64):
    """A sweep maps over them, and another ratio compiles nothing."""
    adapted, params, x = training(variants.make("lora_plus", rank=2))
    traces = []

    def step(ratio):
        traces.append(ratio)
        return one_step(adapted, params, x, optax.sgd(0.1), ratio)

    compiled = jax.jit(step)
    ratios = np.array([0.0, 1.0, 16.0])
    separately = [jax.tree.map(np.asarray, compiled(ratio)) for ratio in ratios]
    assert len(traces) == 1
    together = jax.jit(jax.vmap(step))(ratios)
    check.assert_close(together, jax.tree.map(lambda *leaves: np.stack(leaves), *separately))
    for ratio, updates in zip(ratios, separately, strict=True):
        for path, each in updates["adapters"].items():
            np.testing.assert_allclose(
                each["b"], ratio * separately[1]["adapters"][path]["b"], rtol=1e-12
            )


def test_patterns_have_their_own_ratios(x64):
    targets = {lj.layers("stack", slice(0, 2)): variants.make("lora_plus", rank=2), "w": LoRA(2)}
    shapes = {"stack": (2, 6, 6), "w": (6, 5), "bias": (5,)}
    params = {n: np.zeros(shape) for n, shape in shapes.items()}
    adapted = lj.adapt(two_layers, targets=targets)

    @jax.jit
    def updates(params):
        trainable, frozen = adapted.init(KEY, params, np.zeros((4, 6)))
        ones = jax.tree.map(jnp.ones_like, trainable)
        tx = adapted.optimizer(optax.sgd(-1.0), frozen)
        return tx.update(ones, tx.init(ones))[0]

    adapters = updates(params)["adapters"]
    found = {
        path: {n: set(np.ravel(u)) for n, u in each.items()} for path, each in adapters.items()
    }
    assert found == {"stack": {"a": {1.0}, "b": {4.0}}, "w": {"a": {1.0}, "b": {1.0}}}


@pytest.mark.parametrize("ratio", [-1.0, math.inf, math.nan])
def test_bad_ratios_are_refused(ratio):
    message = f"learning_rate_ratio must be finite and at least 0, got {ratio}"
    for name in ("lora_plus", "dora"):
        with pytest.raises(ValueError, match=re.escape(message)):
            variants.make(name, learning_rate_ratio=ratio)
