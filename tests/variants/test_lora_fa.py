"""LoRA-FA is LoRA with a frozen A, and so keeps and computes less."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_layer_net import training
from weight_formula import assert_is_weight, base_of, factors_of, init

import lora_jax as lj
from variants.lora import LoRA
from variants.lora_fa import LoRAFA

KEY = jax.random.key(0)


def test_lora_fa_is_lora_whose_a_is_a_constant(x64):
    base, variant = base_of((7, 5)), LoRAFA(rank=3, alpha=6.0)
    factors = factors_of(variant, base)
    assert set(factors.trainable) == {"b"} and variant.count((7, 5)) == 15
    same = init(LoRA(rank=3, alpha=6.0), base).trainable["a"]
    np.testing.assert_array_equal(factors.constants["a"], same)
    update = np.asarray(same).T @ np.asarray(factors.trainable["b"])
    assert_is_weight(variant, base, factors, base.value + 2.0 * update)

    adapted, params, x = training(variant)

    @jax.jit
    def gradient_at_start(params):
        trainable, frozen = adapted.init(KEY, params, x)
        return jax.grad(lambda t: jnp.sum(adapted.apply(t, frozen, x) ** 2))(trainable)

    gradient = gradient_at_start(params)
    assert {p: set(g) for p, g in gradient["adapters"].items()} == {"stack": {"b"}, "w": {"b"}}
    assert all(np.asarray(g["b"]).any() for g in gradient["adapters"].values())


def wide_step(variant, tokens=256, width=128):
    """A layer behind a frozen one: the gradient, and the residuals that are as long as a batch."""

    def forward(params, x):
        return (x @ params["w"]) @ params["v"]

    shapes = {"w": (width, width), "v": (width, width)}
    params = {n: jax.ShapeDtypeStruct(shape, jnp.float32) for n, shape in shapes.items()}
    x = jax.ShapeDtypeStruct((tokens, width), jnp.float32)
    adapted = lj.adapt(forward, variant, ["w", "v"])
    trainable, frozen = jax.eval_shape(adapted.init, KEY, params, x)

    def loss(trainable, frozen, x):
        return jnp.sum(adapted.apply(trainable, frozen, x))

    flops = jax.jit(jax.grad(loss)).lower(trainable, frozen, x).compile().cost_analysis()["flops"]
    pull = jax.eval_shape(
        lambda t, f, x: jax.vjp(lambda t: loss(t, f, x), t)[1], trainable, frozen, x
    )
    kept = [leaf.shape for leaf in jax.tree.leaves(pull) if tokens in leaf.shape]
    return flops, sum(sum(shape) - tokens for shape in kept)


def test_lora_fa_keeps_short_residuals_and_computes_less():
    rank, width, tokens = 8, 128, 256
    (flops, kept), (flops_fa, kept_fa) = (wide_step(kind(rank=rank)) for kind in (LoRA, LoRAFA))
    assert kept >= 2 * width  # the input of each layer, for the gradient of its A
    assert kept_fa <= 2 * rank  # of each layer, x A^T
    # The gradients of both A, and for the first layer's that of x A^T, which nothing else needs.
    saved = 3 * 2 * tokens * width * rank
    assert flops - flops_fa == pytest.approx(saved, rel=0.05)
