"""LoRA+ gives B a learning rate of its own, and so do the methods that take its ratio."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo.check as check
from jax import lax

import lora_jax as lj
import variants

KEY = jax.random.key(0)


def two_layers(params, x):
    x = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["stack"])[0]
    return x @ params["w"] + params["bias"][None]


def training(variant):
    shapes = {"stack": (2, 6, 6), "w": (6, 5), "bias": (5,)}
    params = check.random_like({n: np.zeros(shape) for n, shape in shapes.items()}, 0)
    x = check.random_like(np.zeros((4, 6)), 1)
    adapted = lj.adapt(two_layers, variant, ["stack", "w"], also_train="bias")
    return adapted, params, x


def one_step(adapted, params, x, tx):
    """What one step of an optimiser changes."""
    trainable, frozen = adapted.init(KEY, params, x)
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


def test_without_a_ratio_the_optimiser_computes_what_the_given_one_does():
    adapted, *given = training(variants.make("lora_plus", rank=2, learning_rate_ratio=1.0))
    trainable, frozen = jax.eval_shape(adapted.init, KEY, *given)
    tx = optax.sgd(0.1)
    state = jax.eval_shape(tx.init, trainable)
    own, plain = (
        jax.make_jaxpr(each.update)(trainable, state, trainable)
        for each in (adapted.optimizer(tx, frozen), tx)
    )
    assert str(own) == str(plain)
    assert variants.make("lora_plus").learning_rate_ratio == 4.0
