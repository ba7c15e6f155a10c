"""LoRA-GA and LoRA-One against dense gradients: the paper's theorem, and the step at the start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo.check as check
from jax import lax

import lora_jax as lj
import variants
from lora_jax.contract import toys
from lora_jax.methods.lowrank import LowRank

KEY = jax.random.key(0)
RANK = 2


def net(params, x):
    x = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["stack"])[0]
    return x @ params["w"]


def loss(model, batch):
    x, y = batch
    return jnp.mean((model(x) - y) ** 2)


def problem():
    random = np.random.RandomState(0)
    params = {"stack": random.randn(2, 7, 7) / 2, "w": random.randn(7, 6)}
    return params, [(random.randn(8, 7), random.randn(8, 6)) for _ in range(2)]


def of_rank(matrices, rank):
    """The best approximations of a rank."""
    u, s, v = np.linalg.svd(matrices, full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ v[..., :rank, :]


@pytest.mark.parametrize("storage", [None, lj.Int8()])
def test_the_first_step_is_the_gradient_of_twice_the_rank(storage, x64):
    """Theorem 3.1: to first order in the rate, the weight moves along the best approximation."""
    params, batches = problem()
    quantize = {} if storage is None else {".*": storage}
    adapted = lj.adapt(net, variants.make("lora_ga", rank=RANK, alpha=3.0), quantize=quantize)
    x = batches[0][0]
    trainable, frozen = adapted.init(KEY, params, x, batches=batches, loss=loss)
    base = adapted.disable(trainable, frozen)

    @jax.jit
    def steps(trainable, base):
        def over(model):
            return sum(loss(model, batch) for batch in batches) / 2

        small = jax.grad(lambda t: over(lambda x: adapted.apply(t, frozen, x)))(trainable)
        dense = jax.grad(lambda p: over(lambda x: net(p, x)))(base)
        _, moved = jax.jvp(lambda t: adapted.merge(t, frozen), (trainable,), (small,))
        return moved, dense, adapted.apply(trainable, frozen, x), net(base, x)

    moved, dense, started, plain = jax.device_get(steps(trainable, base))
    check.assert_close(started, plain, 1e-12)
    for name, gradient in dense.items():
        scale = 3.0**2 / RANK  # s squared
        size = gradient.shape[-1] ** 0.5 / 16  # c squared, by the gamma of the paper's experiments
        check.assert_close(moved[name], scale * size * of_rank(gradient, 2 * RANK), 1e-9)


@pytest.mark.parametrize("storage", [None, lj.NF4()])
def test_lora_one_starts_with_a_step_of_its_rank(storage, x64):
    """A step against the gradient, over 128 times the gradient's greatest singular value."""
    params, batches = problem()
    quantize = {} if storage is None else {".*": storage}
    adapted = lj.adapt(net, variants.make("lora_one", rank=RANK, alpha=3.0), quantize=quantize)
    x = batches[0][0]
    trainable, frozen = adapted.init(KEY, params, x, batches=batches, loss=loss)

    @jax.jit
    def found(trainable, frozen):
        base = adapted.disable(trainable, frozen)
        over = jax.grad(lambda p: sum(loss(lambda x: net(p, x), batch) for batch in batches) / 2)
        return adapted.merge(trainable, frozen), base, over(base)

    merged, base, dense = jax.device_get(found(trainable, frozen))
    for name, gradient in dense.items():
        size = np.linalg.norm(gradient, 2, axis=(-2, -1))[..., None, None]
        step = 3.0 / RANK**0.5 / 128 * of_rank(gradient, RANK) / size
        check.assert_close(merged[name] - base[name], -step, 1e-7)
        a, b = (np.asarray(trainable["adapters"][name][factor]) for factor in "ab")
        norms = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
        np.testing.assert_allclose(*norms, rtol=1e-7)  # divided evenly
        assert frozen.constants[name].keys() == {"scale"}  # nothing is subtracted


def test_every_method_starts_at_its_base(x64):
    """The start is subtracted in all of them but LoRA-One, and both factors can move."""
    kinds = {name: variants.find(name) for name in variants.names()}
    for name, kind in kinds.items():
        if not issubclass(kind, LowRank):
            continue
        settings = {"target_rank": 1} if name == "adalora" else {}
        for start in ("lora_ga", "lora_one", "eva"):
            try:
                variant = kind(**{"rank": 2, "initialization": start, **settings})
            except ValueError:
                # GraLoRA's blocks start apart, and what is seen is of the whole.
                assert not kind.additive and (start == "lora_one" or name == "gralora")
                continue
            base = toys.base(variant)
            factors = toys.init(variant, 1, base)
            away = np.abs(variant.weight(base, factors) - base.dense()).max()
            assert (away < 1e-12) != (start == "lora_one"), (name, start)
            assert bool(variant.differs_at_init) == (away >= 1e-12)
            moved = jax.tree.map(lambda leaf: leaf + 1.0, factors.trainable)
            weight = variant.weight(base, lj.Factors(moved, factors.constants))
            assert np.abs(weight - base.dense()).max() > 1e-3


def test_what_cannot_work_is_said():
    variant = variants.make("lora_ga", rank=4)
    with pytest.raises(ValueError, match="takes 2 \\* rank = 8 directions"):
        variant.validate((7, 9))
    base = lj.Base(jnp.ones((8, 8)), "io")
    for name in ("lora_ga", "lora_one"):
        with pytest.raises(ValueError, match=f"'{name}' needs the gradients of the weight"):
            variants.make(name, rank=4).init(KEY, base)
