"""The JAX side of the comparisons with PEFT: its names and settings in ours; what must agree."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from make_fixtures.peft_lora import RATE, STEPS

import lora_jax as lj
from variants.lora import LoRA


def forward(params, ids):
    """The torch `net` of the fixtures, over its own state dict."""
    x = params["embed.weight"][ids]
    x = jnp.tanh(x @ params["conv.weight"] + params["conv.bias"][None, None])
    x = jnp.tanh(x @ params["l1.weight"].T + params["l1.bias"][None, None])
    return x @ params["l2.weight"].T + params["l2.bias"][None, None]


def variant_of(config, module):
    """The variant that a LoraConfig means for one module (`get_pattern_key` in PEFT)."""

    def setting(name, patterns):
        for pattern, value in config.get(patterns, {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return config[name]

    return LoRA(
        rank=setting("r", "rank_pattern"),
        alpha=float(setting("lora_alpha", "alpha_pattern")),
        scale="alpha/sqrt(rank)" if config.get("use_rslora") else "alpha/rank",
    )


def adapt(config):
    modules = config["target_modules"]
    targets = {re.escape(f"{module}.weight"): variant_of(config, module) for module in modules}
    return lj.adapt(forward, targets=targets)


def to_factors(tensors):
    """{weight: {a, b}} from PEFT's {..lora_A..: (rank, in), ..lora_B..: (out, rank)}."""
    adapters = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"base_model\.model\.(.+)\.lora_(?:embedding_)?([AB])\..+", name)
        module, letter = found.groups()
        factor = tensor if letter == "A" else tensor.T
        adapters.setdefault(f"{module}.weight", {})[letter.lower()] = jnp.asarray(factor)
    return adapters


def group(arrays, name):
    return {
        key.removeprefix(f"{name}/"): value
        for key, value in arrays.items()
        if key.startswith(f"{name}/")
    }


def sgd(gradient, trainable):
    """Plain gradient descent, as in the fixtures."""
    for _ in range(STEPS):
        trainable = jax.tree.map(lambda x, g: x - RATE * g, trainable, gradient(trainable))
    return trainable


def assert_trees_close(got, expected, atol):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for path, value in jax.tree_util.tree_leaves_with_path(expected):
        mine = got
        for key in path:
            mine = mine[key.key]
        np.testing.assert_allclose(mine, value, atol=atol, rtol=0, err_msg=str(path))


def assert_agrees(arrays, config):
    """Output, loss, gradients, merged weights to 1e-12, and a whole trajectory to 1e-10."""
    params = {name: jnp.asarray(value) for name, value in group(arrays, "base0").items()}
    ids, t = jnp.asarray(arrays["ids"]), jnp.asarray(arrays["t"])
    adapted = adapt(config)
    fresh, frozen = adapted.init(jax.random.key(0), params, ids)
    trainable = {"adapters": to_factors(group(arrays, "param")), "params": {}}
    shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), (fresh, trainable))
    assert shapes[0] == shapes[1]

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def step(trainable):
        y = adapted.apply(trainable, frozen, ids)
        return ((y - t) ** 2).mean(), y

    (value, y), gradient = step(trainable)
    np.testing.assert_allclose(y, arrays["y"], atol=1e-12, rtol=0)
    np.testing.assert_allclose(value, arrays["loss"], atol=1e-12, rtol=0)
    assert_trees_close(gradient["adapters"], to_factors(group(arrays, "grad")), 1e-12)

    merged = adapted.merge(trainable, frozen)
    assert_trees_close(merged, group(arrays, "merged"), 1e-12)
    np.testing.assert_allclose(forward(merged, ids), arrays["y_merged"], atol=1e-12, rtol=0)
    assert np.abs(arrays["y"] - forward(params, ids)).max() > 1e-3  # the adapters matter

    moved = [np.abs(arrays[f"trained/{k}"] - v).max() for k, v in group(arrays, "param").items()]
    assert max(moved) > 1e-3
    trained = sgd(lambda trainable: step(trainable)[1], trainable)
    assert_trees_close(trained["adapters"], to_factors(group(arrays, "trained")), 1e-10)
