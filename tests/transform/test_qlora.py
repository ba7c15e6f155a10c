"""Adapters on quantised weights, whole: selection, exactness, memory, devices, files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lora_jax as lj
import variants
from lora_jax.contract.toys import normal

LORA = variants.make("lora", rank=4)
TARGETS = "layers/(up|down)"
LAYERS, WIDTH, INNER = SIZES = 2, 64, 128


def forward(params, x):
    """A stack of residual blocks under a scan, and a head."""

    def block(x, layer):
        hidden = jnp.tanh(x @ layer["up"])
        return x + hidden @ layer["down"] + layer["bias"][None], None

    x, _ = lax.scan(block, x, params["layers"])
    return x @ params["head"]


def parameters(dtype=jnp.float32, sizes=SIZES):
    layers, width, inner = sizes
    shapes = {
        "layers": {
            "up": (layers, width, inner),
            "down": (layers, inner, width),
            "bias": (layers, width),
        },
        "head": (width, 3),
    }
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda each: isinstance(each, tuple))
    return treedef.unflatten([normal(s, i, dtype, width**-0.5) for i, s in enumerate(leaves)])


X = normal((16, WIDTH), 9, jnp.float32)


def adapted_by(quantize, variant=LORA, targets=TARGETS, **options):
    adapted = lj.adapt(forward, variant, targets, quantize=quantize, **options)
    params = parameters()
    return adapted, params, *jax.jit(adapted.init)(jax.random.key(0), params, X)


def test_weights_are_stored_whether_adapted_or_not_and_the_first_pattern_decides():
    quantize = {"layers/up": lj.Int8(), "layers/.*(up|down)": lj.NF4()}
    adapted, params, trainable, frozen = adapted_by(quantize, targets="layers/up")
    assert set(frozen.base["layers/up"]) == {"codes", "absmax"}
    assert frozen.base["layers/up"]["codes"].dtype == jnp.int8
    assert frozen.base["layers/down"]["codes"].dtype == jnp.uint8
    assert trainable["adapters"].keys() == {"layers/up"}

    @jax.jit
    def uses(trainable, frozen, params):
        merged, disabled = (f(trainable, frozen) for f in (adapted.merge, adapted.disable))
        up = jax.vmap(lambda w: lj.Int8().load(lj.Int8().store(w), w.shape, w.dtype))
        applied = adapted.apply(trainable, frozen, X), forward(disabled, X)
        return merged, disabled, up(params["layers"]["up"]), applied

    merged, disabled, up, (y, expected) = uses(trainable, frozen, params)
    for tree in (merged, disabled):
        assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, params)
    np.testing.assert_array_equal(disabled["layers"]["up"], up)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    counted = lj.summary(trainable, frozen)
    assert counted.total == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert counted.trained == LAYERS * 4 * (WIDTH + INNER)


def test_all_linear_is_a_pattern():
    def stored(**options):
        adapted = lj.adapt(forward, LORA, TARGETS, quantize={"all-linear": lj.NF4()}, **options)
        _, frozen = jax.eval_shape(adapted.init, jax.random.key(0), parameters(), X)
        return {path for path, value in frozen.base.items() if isinstance(value, dict)}

    assert stored() == {"layers/up", "layers/down", "head"}
    assert stored(also_train="head") == {"layers/up", "layers/down"}


@pytest.mark.parametrize(
    "quantize, options, said",
    [
        ({"layers/upp": lj.NF4()}, {}, "nearest: 'layers/up'"),
        ({"layers/bias": lj.NF4()}, {}, "'layers/bias' is selected, but no product shows"),
        ({"head": lj.NF4()}, {"also_train": "head"}, "'head' is trained in full, and cannot be q"),
        ({lj.layers("layers/up", 0): lj.NF4()}, {}, "'layers/up': the layers of a stacked weight"),
        ({"layers/up": "nf4"}, {}, r"'layers/up' must map to lj.NF4\(\) or lj.Int8\(\), not 'nf4'"),
        ({"head": lj.NF4(), ".*ead": lj.Int8()}, {}, "selects only what other patterns"),
    ],
)
def test_mistakes_are_one_line(quantize, options, said):
    with pytest.raises(ValueError, match=said) as error:
        adapted_by(quantize, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "storage, dtype, bad",
    [
        (lj.NF4(), jnp.float32, jnp.nan),
        (lj.NF4(double_quant=True), jnp.bfloat16, jnp.inf),
        (lj.Int8(), jnp.float32, -jnp.inf),
        (lj.NF4(), jnp.bfloat16, -3e38),
    ],
)
def test_weights_that_no_scale_can_stand_for_are_refused(storage, dtype, bad):
    params = parameters(dtype)
    down = np.array(params["layers"]["down"])
    down[1, 2, 3] = bad
    params["layers"]["down"] = jnp.asarray(down)
    adapted = lj.adapt(forward, LORA, "layers/up", quantize={"layers/down": storage})
    message = (
        r"^'layers/down' cannot be quantised: 1 of its numbers are not finite, or beyond 1e\+30"
    )
    with pytest.raises(ValueError, match=message) as error:
        adapted.init(jax.random.key(0), params, X.astype(dtype))
    assert "\n" not in str(error.value)
    lj.adapt(forward, LORA, "layers/up").init(
        jax.random.key(0), params, X.astype(dtype)
    )  # stored densely


@pytest.mark.parametrize("storage", [lj.NF4(), lj.NF4(double_quant=True), lj.Int8()], ids=str)
def test_the_largest_weights_are_stored_as_smaller_ones_are(storage):
    params, size = jax.tree.map(np.asarray, parameters()), np.float32(2.0**99)
    assert 1e29 < np.abs(params["layers"]["down"]).max() * size < 1e30
    adapted = lj.adapt(forward, LORA, "layers/up", quantize={"layers/down": storage})
    read = jax.jit(lambda params: adapted.disable(*adapted.init(jax.random.key(0), params, X)))
    stored = []
    for factor in (np.float32(1), size):
        layers = params["layers"] | {"down": params["layers"]["down"] * factor}
        stored.append(read(params | {"layers": layers})["layers"]["down"])
    np.testing.assert_array_equal(stored[1], stored[0] * size)


# What methods see of quantised weights: `test_gather.py`.


def test_init_makes_stored_weights_without_values_and_under_jit():
    adapted = lj.adapt(forward, LORA, "layers/up", quantize={"layers/down": lj.NF4()})
    params = parameters()
    key = jax.random.key(0)
    want = adapted.init(key, params, X)
    assert want[1].base["head"] is params["head"]
    shapes = jax.eval_shape(adapted.init, key, params, X)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), want) == jax.tree.map(
        lambda a: (a.shape, a.dtype), shapes
    )
    jitted = jax.jit(adapted.init)(key, params, X)
    np.testing.assert_array_equal(
        jitted[1].base["layers/down"]["codes"], want[1].base["layers/down"]["codes"]
    )
