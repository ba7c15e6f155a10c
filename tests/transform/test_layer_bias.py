"""The biases of adapted layers, with (IA)3 of whole outputs; equality with PEFT is tested there."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lora_jax as lj
from lora_jax.base import Uses, WeightUse
from lora_jax.transform.placement import bias_beside
from variants.ia3 import IA3

KEY = jax.random.key(0)


def layers(params, x):
    """Two layers of one stack, whose outputs are two heads, in a scan."""

    def one(x, each):
        y = jnp.einsum("bi,iho->bho", x, each["kernel"]) + each["bias"][None]
        return jnp.tanh(y).reshape(x.shape), None

    return jax.lax.scan(one, x, params["layers"])[0]


def problem():
    random = np.random.RandomState(0)
    stacked = {"kernel": (2, 6, 2, 3), "bias": (2, 2, 3)}
    stacked = {name: jnp.asarray(random.randn(*shape)) for name, shape in stacked.items()}
    return {"layers": stacked}, jnp.asarray(random.randn(4, 6))


@pytest.mark.parametrize("trained", [False, True])
def test_biases_of_the_chosen_layers_are_rescaled(trained, x64):
    """Whether the bias itself is frozen or trains in full."""
    params, x = problem()
    also = "layers/bias" if trained else ()
    targets = {lj.layers("layers/kernel", 1): IA3(biases=True)}
    adapted = lj.adapt(layers, targets=targets, also_train=also)
    trainable, frozen = adapted.init(KEY, params, x)
    moved = jax.tree.map(lambda leaf: leaf * 1.5 + 0.25, trainable)
    scale = np.asarray(moved["adapters"]["layers/kernel"]["l"][1]).reshape(2, 3)
    merged = adapted.merge(moved, frozen)["layers"]
    for name in ("kernel", "bias"):
        before = np.asarray(moved["params"].get(f"layers/{name}", params["layers"][name]))
        np.testing.assert_array_equal(merged[name][0], before[0])
        np.testing.assert_allclose(merged[name][1], before[1] * scale, rtol=1e-14)

    @jax.jit
    def both(moved):
        plain = layers({"layers": merged}, x)
        gradient = jax.grad(lambda t: (adapted.apply(t, frozen, x) ** 2).sum())(moved)
        through = jax.grad(lambda t: (layers(adapted.merge(t, frozen), x) ** 2).sum())(moved)
        return (adapted.apply(moved, frozen, x), gradient), (plain, through)

    got, wanted = both(moved)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), got, wanted)
    disabled = adapted.disable(trainable, frozen)["layers"]["bias"]
    np.testing.assert_array_equal(disabled, params["layers"]["bias"])


def test_the_contract_holds_with_biases():
    checks = ["apply_equals_forward_of_merge", "works_under_vmap", "disabling_gives_back_the_base"]
    lj.check(IA3(biases=True), checks=checks)


@pytest.mark.parametrize(
    "kernel, bias",
    [
        ("a/kernel", "a/bias"),
        ("w", "b"),
        ("l1.weight", "l1.bias"),
        ("in_proj_weight", "in_proj_bias"),
        ("kernel/kernel", None),
        ("a/wide", None),  # of another shape
    ],
)
def test_a_bias_is_found_by_its_name_and_shape(kernel, bias):
    matrices = ["w", "a/kernel", "l1.weight", "in_proj_weight", "kernel/kernel"]
    vectors = ["b", "a/bias", "l1.bias", "in_proj_bias"]
    shapes = {**dict.fromkeys(matrices, (2, 3)), **dict.fromkeys(vectors, (3,)), "a/wide": (2, 4)}
    uses = Uses({path: WeightUse(path, shape, jnp.float32) for path, shape in shapes.items()})
    use = dataclasses.replace(uses[kernel], inputs=(0,), outputs=(1,))
    assert bias_beside(use, uses) == bias


def test_biases_that_are_nowhere_are_an_error():
    said = "IA3(scales='outputs', biases=True) adapts biases, and none is beside 'w' or its other"
    adapted = lj.adapt(lambda p, x: x @ p["w"] + p["shift"][None], IA3(biases=True), "w")
    with pytest.raises(ValueError, match=re.escape(said)):
        adapted.init(KEY, {"w": jnp.ones((3, 2)), "shift": jnp.ones(2)}, jnp.ones((2, 3)))


def test_the_bias_stays_where_inputs_are_rescaled():
    adapted = lj.adapt(layers, IA3(scales="inputs", biases=True), "layers/kernel")
    params, x = problem()
    trainable, frozen = adapted.init(KEY, params, x)
    merged = adapted.merge(jax.tree.map(lambda leaf: leaf + 1, trainable), frozen)
    np.testing.assert_array_equal(merged["layers"]["bias"], params["layers"]["bias"])


def test_a_bias_beside_two_weights_is_an_error():
    adapted = lj.adapt(lambda p, x: x @ p["w"] @ p["kernel"] + p["b"][None], IA3(biases=True))
    params = {"w": jnp.ones((2, 2)), "kernel": jnp.ones((2, 2)), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"'b' is beside several weights .* 'kernel' among them"):
        adapted.init(KEY, params, jnp.ones((2, 2)))
