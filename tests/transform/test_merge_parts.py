"""Adapters merged layer by layer are those merged at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo.check import random_like

import lora_jax as lj
import variants
from lora_jax.partition import flatten
from lora_jax.transform.adapt import base_parts, merged_parts

LORA, STACK = variants.make("lora", rank=2), "layers/kernel"
CASES = {
    "shared arrays": ("all-linear", variants.make("vera", rank=2), {}),
    "heads and biases": (STACK, variants.make("ia3", biases=True), {}),
    "one layer of what is quantised": (
        lj.layers(STACK, 1),
        LORA,
        {"quantize": {"kernel|first": lj.Int8()}, "also_train": "layers/bias"},
    ),
}


def net(params, x):
    """A matrix, then a stack of layers with two heads each."""

    def one(x, each):
        y = jnp.einsum("bi,iho->bho", x, each["kernel"]) + each["bias"][None]
        return jnp.tanh(y).reshape(x.shape), None

    return jax.lax.scan(one, x @ params["first"], params["layers"])[0]


def layer_by_layer(parts):
    found = {}
    for path in parts.shapes:
        numbers = range(3) if path.startswith("layers/") else None
        layers = [parts.part(path, i) for i in numbers or ()]
        found[path] = np.stack(layers) if numbers else np.asarray(parts.part(path, None))
    return found


@pytest.mark.parametrize("name", CASES)
def test_layers_are_those_of_the_whole(name, x64):
    targets, variant, options = CASES[name]
    random = np.random.RandomState(0)
    shapes = {"first": (5, 6), "layers": {"kernel": (3, 6, 2, 3), "bias": (3, 2, 3)}}
    params = jax.tree.map(
        lambda shape: jnp.asarray(random.randn(*shape)),
        shapes,
        is_leaf=lambda shape: isinstance(shape, tuple),
    )
    adapted = lj.adapt(net, variant, targets, **options)
    trainable, frozen = adapted.init(jax.random.key(0), params, jnp.ones((2, 5)))
    trainable = jax.tree.map(jnp.add, trainable, random_like(trainable, 1))
    for parts, whole in (
        (merged_parts(trainable, frozen), adapted.merge(trainable, frozen)),
        (base_parts(frozen), adapted.disable(trainable, frozen)),
    ):
        expected, _ = flatten(whole)
        found = layer_by_layer(parts)
        assert found.keys() | trainable["params"].keys() == expected.keys()
        for path, array in found.items():
            assert parts.shapes[path].shape == expected[path].shape == array.shape
            np.testing.assert_allclose(array, expected[path], rtol=1e-12, atol=1e-13)


def test_what_is_merged_is_not_rounded_to_the_base_dtype():
    params = {"w": jnp.full((4, 4), 1.0, jnp.bfloat16)}
    adapted = lj.adapt(lambda params, x: x @ params["w"], LORA)
    trainable, frozen = adapted.init(jax.random.key(0), params, jnp.ones((1, 4), jnp.bfloat16))
    a, b = (jnp.full(x.shape, 2.0**-6) for x in trainable["adapters"]["w"].values())
    trainable["adapters"]["w"] = dict(zip(trainable["adapters"]["w"], (a, b), strict=True))
    parts, scale = merged_parts(trainable, frozen), float(frozen.constants["w"]["scale"])
    assert parts.shapes["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(parts.part("w", None), np.full((4, 4), 1 + scale * 2.0**-11))
    np.testing.assert_array_equal(adapted.merge(trainable, frozen)["w"], params["w"])


def test_disabling_gives_what_is_trained_in_full_as_trained_and_the_rest_as_stored():
    params = {"w": jnp.arange(8.0).reshape(4, 2) / 7, "stored": jnp.eye(2) * 5, "head": jnp.eye(2)}
    adapted = lj.adapt(
        lambda params, x: x @ params["w"] @ params["stored"] @ params["head"],
        LORA,
        targets=["w", "stored"],
        also_train="head",
        quantize={"stored": lj.Int8()},
    )
    trainable, frozen = adapted.init(jax.random.key(0), params, jnp.ones((1, 4)))
    trained = jax.tree.map(lambda x: x + 1, trainable)
    base = adapted.disable(trained, frozen)
    np.testing.assert_array_equal(base["w"], params["w"])
    np.testing.assert_array_equal(base["head"], params["head"] + 1)
    np.testing.assert_array_equal(base["stored"], params["stored"])  # which int8 holds exactly
    assert base["stored"].dtype == params["stored"].dtype
