"""LoftQ against its algorithm in NumPy, with a quantiser of its own; what it is not for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo.check as check
from jax import lax

import lora_jax as lj
import variants
from lora_jax.contract.clause import by_numpy
from lora_jax.quantization.nf4 import VALUES
from lora_jax.variant import Base

KEY = jax.random.key(0)
BLOCK, RANK, ALPHA = 8, 2, 5.0  # s is not 1
STORAGE = lj.NF4(block=BLOCK)
SHAPES = {"stack": (3, 24, 24), "w": (24, 10)}


def net(params, x):
    x = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["stack"])[0]
    return x @ params["w"]


@pytest.fixture(scope="module")
def params():
    random = np.random.RandomState(0)
    return {n: random.randn(*shape).astype(np.float32) / 5 for n, shape in SHAPES.items()}


def lora(start, rank=RANK):
    return variants.make("lora", rank=rank, alpha=ALPHA, initialization=start)


def started(params, targets, quantize=".*"):
    """What is stored, what each adapter adds to it, and the merged weights."""
    adapted = lj.adapt(net, None, targets, quantize={quantize: STORAGE})

    @jax.jit  # as one program: each operation by itself would be compiled
    def all_of_it(params):
        trainable, frozen = adapted.init(KEY, params, np.ones((2, 24), np.float32))
        base, merged = (f(trainable, frozen) for f in (adapted.disable, adapted.merge))
        return base, merged, trainable["adapters"], frozen.constants

    return jax.device_get(all_of_it(params))


def nearest(w):
    """NF4 in blocks along the inputs: the nearest of 16 values, times the greatest magnitude."""
    blocks = w.astype(np.float32).reshape(-1, BLOCK, w.shape[1])
    size = np.abs(blocks).max(axis=1, keepdims=True)
    codes = np.abs((blocks / size)[..., None] - VALUES).argmin(axis=-1)
    return (VALUES[codes] * size).reshape(w.shape).astype(np.float64)


def best(w, rank):
    u, s, v = np.linalg.svd(w, full_matrices=False)
    return u[:, :rank] * s[:rank] @ v[:rank]


def by_the_algorithm(w, steps, rank=RANK):
    """Q and s A^T B after some steps."""
    w, update = w.astype(np.float64), 0.0
    for _ in range(steps):
        q = nearest(w - update)
        update = best(w - q, rank)
    return q, update


@pytest.mark.parametrize("start, steps", [("loftq", 1), ("loftq_iter_3", 3)])
def test_it_is_the_alternation_of_the_paper(start, steps, params, x64):
    base, merged, adapters, constants = started(params, {".*": lora(start)})
    for name, rows in params.items():
        for index in np.ndindex(rows.shape[:-2]):
            q, update = by_the_algorithm(rows[index], steps)
            np.testing.assert_allclose(base[name][index], q, atol=1e-6)
            np.testing.assert_allclose(merged[name][index], q + update, atol=2e-6)
            a, b = (adapters[name][factor][index] for factor in "ab")
            np.testing.assert_allclose(ALPHA / RANK * a.T @ b, update, atol=1e-6)
            np.testing.assert_allclose(a @ a.T, b @ b.T, atol=1e-6)  # divided evenly
        assert constants[name].keys() == {"scale"}  # nothing is subtracted


def test_layers_of_a_stack_that_differ_are_stored_each_by_its_own(params):
    targets = {
        lj.layers("stack", slice(0, 1)): lora("loftq_iter_2", rank=3),
        lj.layers("stack", slice(1, 2)): lora("loftq_iter_2", rank=1),
        "w": None,
    }
    base, merged, _, _ = started(params, targets)
    for index, rank in enumerate((3, 1)):
        q, update = by_the_algorithm(params["stack"][index], 2, rank)
        np.testing.assert_allclose(base["stack"][index], q, atol=1e-6)
        np.testing.assert_allclose(merged["stack"][index], q + update, atol=1e-5)
    bare = nearest(params["stack"][2])
    np.testing.assert_allclose(base["stack"][2], bare, atol=1e-6)
    np.testing.assert_array_equal(merged["stack"][2], base["stack"][2])
    np.testing.assert_allclose(base["w"], nearest(params["w"]), atol=1e-6)


def test_without_jit_it_is_the_same_and_the_products_are_those_of_the_merged_weight(params):
    adapted = lj.adapt(net, lora("loftq_iter_2"), quantize={".*": lj.Int8()})
    x = np.random.RandomState(1).randn(4, 24).astype(np.float32)
    trainable, frozen = adapted.init(KEY, params, x)
    merged = by_numpy(adapted.merge)(trainable, frozen)
    check.assert_close(adapted.apply(trainable, frozen, x), net(merged, x), 1e-5)
    again = by_numpy(adapted.merge)(*jax.jit(adapted.init)(KEY, params, x))
    check.assert_close(again, merged, 1e-5)


def test_a_weight_that_quantisation_leaves_alone_begins_as_with_lora(params):
    _, restored, _, _ = started(params, {".*": lora("kaiming_uniform")})  # B is zero
    base, merged, adapters, _ = started(restored, {".*": lora("loftq_iter_2")})
    for name in restored:
        np.testing.assert_array_equal(merged[name], base[name])
        assert np.all(np.any(adapters[name]["a"] != 0, axis=-1)), name  # so that B learns


def test_what_cannot_work_is_said():
    with pytest.raises(ValueError, match="'loftq' is for quantised weights: name this one"):
        lora("loftq").init(KEY, Base(jnp.ones((8, 8)), "io"))
