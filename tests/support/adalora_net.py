"""Training with AdaLoRA as a user's own loop would, and what must agree with PEFT's."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from make_fixtures.adalora import RATE
from peft_net import group

import lora_jax as lj
from variants.adalora import AdaLoRA


def random_like(tree, seed=1, scale=0.5):
    leaves, treedef = jax.tree.flatten(tree)
    random = np.random.RandomState(seed)
    return treedef.unflatten(
        [jnp.asarray((scale * random.randn(*x.shape)).astype(x.dtype)) for x in leaves]
    )


def clipped(grads, norm):
    """Gradients no longer than `norm`, all of them taken together."""
    total = sum(jnp.square(g).sum() for g in jax.tree.leaves(grads)) ** 0.5
    return jax.tree.map(lambda g: g * jnp.minimum(1, norm / total), grads)


def stepper(adapted, frozen, task_loss, rate=RATE, clip=np.inf):
    """A compiled step of plain gradient descent, penalty and update included; counts its traces."""

    def step(trainable, state, number, *batch):
        step.traces += 1

        def loss(trainable):
            y = adapted.apply(trainable, frozen, batch[0])
            return task_loss(y, *batch[1:]) + adapted.penalty(trainable, frozen)

        value, grads = jax.value_and_grad(loss)(trainable)
        grads = clipped(grads, clip)
        after = jax.tree.map(lambda x, g: x - rate * g, trainable, grads)
        state, trainable = adapted.update(state, trainable, after, grads, number, frozen)
        return trainable, state, value

    step.traces = 0
    compiled = jax.jit(step)
    compiled.count = lambda: step.traces
    return compiled


def forward(params, x):
    """The torch `net` of the fixtures, over its own state dict."""
    last = max(int(name.split(".")[0]) for name in params)
    for layer in range(last + 1):
        x = x @ params[f"{layer}.weight"].T + params[f"{layer}.bias"][None]
        x = jnp.tanh(x) if layer < last else x
    return x


def squared_error(y, t):
    return ((y - t) ** 2).mean()


def variant_of(config):
    """The variant that an AdaLoraConfig means."""
    names = {
        **{"init_r": "rank", "target_r": "target_rank", "total_step": "total_steps"},
        **{"tinit": "t_init", "tfinal": "t_final", "deltaT": "delta_t", "lora_alpha": "alpha"},
        **{"orth_reg_weight": "orthogonality", "beta1": "beta1", "beta2": "beta2"},
    }
    return AdaLoRA(mode="reference", **{names[name]: value for name, value in config.items()})


def to_factors(tensors):
    """{weight: {a, b, e}} from PEFT's lora_A (rank, in), lora_B (out, rank), lora_E (rank, 1)."""
    adapters = {}
    for name, tensor in tensors.items():
        layer, letter = re.fullmatch(
            r"base_model\.model\.(\d+)\.lora_([ABE])\.default", name
        ).groups()
        ours = {"A": tensor, "B": tensor.T, "E": tensor.ravel()}[letter]
        adapters.setdefault(f"{layer}.weight", {})[letter.lower()] = ours
    return adapters


def assert_follows(arrays, config, clip=np.inf):
    """Every tensor, loss, budget and choice of a whole training, and what is merged at the end."""
    params = group(arrays, "base0")
    inputs, targets, losses = (arrays[name] for name in ("x", "t", "loss"))  # read once each
    adapted = lj.adapt(forward, variant_of(config), r"\d+\.weight")
    fresh, frozen = jax.jit(adapted.init)(jax.random.key(0), params, inputs[0])
    traced, chosen = group(arrays, "param"), group(arrays, "kept")

    def at(number):
        return {"adapters": to_factors({n: v[number] for n, v in traced.items()}), "params": {}}

    trainable = jax.tree.map(jnp.asarray, at(0))
    assert jax.tree.map(jnp.shape, trainable) == jax.tree.map(jnp.shape, fresh)
    state = jax.jit(adapted.init_state)(trainable, frozen)
    step = stepper(adapted, frozen, squared_error, clip=clip)
    np.testing.assert_array_equal(frozen.shared[0]["budget"][1:], arrays["budget"])
    for number in range(config["total_step"]):
        x, t = inputs[number], targets[number]
        trainable, state, loss = step(trainable, state, jnp.asarray(number), x, t)
        np.testing.assert_allclose(loss, losses[number], atol=1e-10, rtol=0)
        for path, factors in at(number + 1)["adapters"].items():
            for name, value in factors.items():
                mine = trainable["adapters"][path][name]
                np.testing.assert_allclose(mine, value, atol=1e-10, rtol=0, err_msg=f"{number}")
        for name, kept in chosen.items():
            path = name.removeprefix("base_model.model.").replace("lora_E.default", "weight")
            np.testing.assert_array_equal(state[0]["kept"][path], kept[number])
    assert step.count() == 1
    merged = jax.jit(adapted.merge)(trainable, frozen)
    for name, value in group(arrays, "merged").items():
        np.testing.assert_allclose(merged[name], value, atol=1e-10, rtol=0)
    used = sum(np.count_nonzero(f["e"]) for f in trainable["adapters"].values())
    assert used == arrays["budget"][-1]
