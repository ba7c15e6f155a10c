"""rsLoRA divides the update by the root of the rank, and is LoRA with a larger alpha."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weight_formula import assert_is_weight, base_of, factors_of, init

import lora_jax as lj
from lora_jax.partition import flatten
from variants.lora import LoRA
from variants.rslora import RsLoRA

KEY = jax.random.key(0)


@pytest.mark.parametrize("rank, alpha", [(4, 16.0), (9, 0.5)])
def test_rslora_divides_by_the_root_of_the_rank(rank, alpha, x64):
    base, variant = base_of((12, 10)), RsLoRA(rank=rank, alpha=alpha)
    factors = factors_of(variant, base)
    update = np.asarray(factors.trainable["a"]).T @ np.asarray(factors.trainable["b"])
    assert_is_weight(variant, base, factors, base.value + alpha / math.sqrt(rank) * update)
    plain = LoRA(rank=rank, alpha=alpha * math.sqrt(rank))
    constants = init(plain, base).constants
    np.testing.assert_allclose(constants["scale"], factors.constants["scale"], rtol=1e-14)


@pytest.mark.parametrize("rank, alpha", [(16, 4.0), (64, 4.0)])
def test_rslora_trains_as_lora_with_a_larger_alpha_bit_for_bit(rank, alpha):
    """Where the root of the rank is exact, both scales round to the same number."""
    x, y = (jnp.asarray(np.random.RandomState(i).randn(4, 12), jnp.float32) for i in (5, 6))
    trained = []
    for variant in (RsLoRA(rank=rank, alpha=alpha), LoRA(rank=rank, alpha=alpha * rank**0.5)):
        adapted = lj.adapt(lambda params, x: x @ params["w"], variant, ["w"])
        trainable, frozen = adapted.init(KEY, {"w": jnp.eye(12)}, x)
        gradient = jax.jit(
            jax.grad(lambda t, f, a=adapted: jnp.square(a.apply(t, f, x) - y).mean())
        )
        for _ in range(3):
            step = gradient(trainable, frozen)
            trainable = jax.tree.map(lambda leaf, g: leaf - jnp.float32(0.1) * g, trainable, step)
        trained.append(flatten(trainable)[0])
    (one, other) = trained
    assert one.keys() == other.keys() and one
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[name])
        assert np.abs(np.asarray(leaf)).max() > 0


def test_the_size_of_outputs_does_not_depend_on_the_rank_in_rslora():
    """The statement of the paper, for random factors of unit size."""

    def size(variant):
        a, b = (np.random.RandomState(i).randn(variant.rank, 256) for i in (1, 2))
        return variant.scaling() * np.linalg.norm(a.T @ b) / 256

    grown = {kind: size(kind(rank=256)) / size(kind(rank=4)) for kind in (RsLoRA, LoRA)}
    assert 0.9 < grown[RsLoRA] < 1.1 and grown[LoRA] < 0.15
