"""IA3 scales the outputs or the inputs of a weight, as the vectors of its paper do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo.check as check
from weight_formula import assert_is_weight, base_of, factors_of, init

import lora_jax as lj
import variants
from variants.ia3 import IA3

KEY = jax.random.key(0)


@pytest.mark.parametrize("scales", ["outputs", "inputs"])
def test_ia3_scales_columns_or_rows(scales, x64):
    shape = (7, 5)
    base, variant = base_of(shape), IA3(scales=scales)
    start = init(variant, base)
    size = shape[1] if scales == "outputs" else shape[0]
    np.testing.assert_array_equal(start.trainable["l"], np.ones(size))
    assert variant.count(shape) == size and not start.constants
    assert_is_weight(variant, base, start, base.value)
    factors = factors_of(variant, base)
    l, w = np.asarray(factors.trainable["l"]), np.asarray(base.value)
    w = w @ np.diag(l) if scales == "outputs" else np.diag(l) @ w
    assert_is_weight(variant, base, factors, jnp.asarray(w))


def test_ia3_of_keys_and_feed_forward_inputs_is_the_papers(x64):
    """l on keys, values and what enters the second matrix, as vectors beside the weights."""

    def forward(p, x):
        scores = (x @ p["query"]) @ (x @ p["key"]).T
        y = jax.nn.softmax(scores) @ (x @ p["value"])
        return jnp.tanh(y @ p["up"]) @ p["down"]

    def papers(p, x, l):
        scores = (x @ p["query"]) @ (x @ p["key"] * l["key"][None]).T
        y = jax.nn.softmax(scores) @ (x @ p["value"] * l["value"][None])
        return (jnp.tanh(y @ p["up"]) * l["down"][None]) @ p["down"]

    shapes = dict.fromkeys(("query", "key", "value"), (6, 6)) | {"up": (6, 9), "down": (9, 6)}
    params = check.random_like({n: np.zeros(shape) for n, shape in shapes.items()}, 0)
    x = check.random_like(np.zeros((4, 6)), 1)
    adapted = lj.adapt(forward, targets={"key|value": IA3(), "down": IA3(scales="inputs")})

    @jax.jit
    def both(params, x):
        trainable, frozen = adapted.init(KEY, params, x)
        sizes = {path: f["l"].size for path, f in trainable["adapters"].items()}
        l = {path: 1 + np.arange(size) / 5 for path, size in sizes.items()}
        moved = {**trainable, "adapters": {path: {"l": jnp.asarray(l[path])} for path in l}}
        return adapted.apply(moved, frozen, x), papers(params, x, l)

    np.testing.assert_allclose(*both(params, x), atol=1e-12)


def test_ia3_sides_are_named():
    with pytest.raises(ValueError, match="scales 'both': expected outputs or inputs"):
        variants.make("ia3", scales="both")
