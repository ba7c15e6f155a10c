"""Adapters on quantised weights, whole: selection, exactness, memory, devices, files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from zoo.check import by_numpy

import lora_jax as lj
import variants
from lora_jax.contract.toy_matrices import noisy, normal
from lora_jax.files.tree_file import load_tree, save_tree
from lora_jax.training.checkpoint import Checkpoints

LORA = variants.make("lora", rank=4)
TARGETS = "layers/(up|down)"
LAYERS, WIDTH, INNER = SIZES = 2, 64, 128
LARGE = 6, 256, 512  # where temporary memory is measured


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


@pytest.fixture(scope="module")
def stored():
    """A model in NF4, moved adapters, the same on the weights that are stored, and their steps."""
    adapted, _, trainable, frozen = adapted_by({"layers/.*(up|down)": lj.NF4()})
    dense = lj.adapt(forward, LORA, TARGETS)
    moved = noisy(trainable, scale=0.05)

    @jax.jit
    def densely(trainable, frozen):
        return dense.init(jax.random.key(0), adapted.disable(trainable, frozen), X)[1]

    return adapted, moved, frozen, dense, densely(trainable, frozen)


def assert_close_gradients(got, wanted):
    """Up to 1e-4 of the largest number of all."""
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * scale), got, wanted
    )


LARGE_X = normal((16, LARGE[1]), 9, jnp.float32)


def large(**options):
    """A large model, its parameters, and the shapes of what trains and of what is stored."""
    adapted = lj.adapt(forward, LORA, TARGETS, **options)
    params = parameters(sizes=LARGE)
    return adapted, params, jax.eval_shape(adapted.init, jax.random.key(0), params, LARGE_X)


def nbytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "storage, limit", [(lj.NF4(), 0.16), (lj.NF4(double_quant=True), 0.13), (lj.Int8(), 0.26)]
)
def test_bytes_of_stored_weights(storage, limit):
    _, params, (_, frozen) = large(quantize={TARGETS: storage})
    dense = nbytes([params["layers"]["up"], params["layers"]["down"]])
    stored = nbytes([frozen.base["layers/up"], frozen.base["layers/down"]])
    assert stored <= limit * dense


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
        ({"layers/bias": lj.NF4()}, {}, "'layers/bias' is selected, but the function never mult"),
        ({"head": lj.NF4()}, {"also_train": "head"}, "'head' is trained in full, and cannot be q"),
        ({lj.layers("layers/up", 0): lj.NF4()}, {}, "'layers/up': the layers of a stacked weight"),
        ({"layers/up": "nf4"}, {}, r"'layers/up' must map to lj.NF4\(\) or lj.Int8\(\), not 'nf4'"),
        ({"head": lj.NF4(), ".*ead": lj.NF4()}, {}, "selects only what earlier patterns"),
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


MADE = {name: variants.make(name) for name in variants.names()}
# What methods see of quantised weights: `test_gather.py`.
ADAPTING = [name for name, each in MADE.items() if each.adapts and not each.needs]
PAIRS = [ADAPTING[first : first + 2] for first in range(0, len(ADAPTING), 2)]
STORED = [(PAIRS[0], lj.NF4()), *((pair, lj.Int8()) for pair in PAIRS[1:])]  # int8 compiles sooner


@pytest.mark.parametrize("names, storage", STORED, ids=str)
def test_every_method_equals_itself_on_the_weights_that_are_stored(names, storage):
    """The quantised base, dequantised and given as a dense one: the same function and gradients."""
    targets = dict(zip(("layers/up", "layers/down"), map(variants.make, names), strict=False))
    adapted = lj.adapt(forward, targets=targets, quantize={"layers/.*(up|down)": storage})
    dense = lj.adapt(forward, targets=targets)

    def both():
        trainable, frozen = adapted.init(jax.random.key(0), parameters(), X)
        _, frozen_dense = dense.init(jax.random.key(0), adapted.disable(trainable, frozen), X)
        moved = noisy(trainable, scale=0.05)
        return [
            jax.value_and_grad(lambda t: (each.apply(t, f, X) ** 2).mean())(moved)  # noqa: B023
            for each, f in ((adapted, frozen), (dense, frozen_dense))
        ]

    (value, got), (other, wanted) = by_numpy(both)()  # to compile them takes longer
    np.testing.assert_allclose(value, other, rtol=2e-5)
    assert_close_gradients(got, wanted)


def temporary(forward, *arguments):
    """Bytes that a gradient step needs beside its arguments and results."""
    loss = jax.jit(jax.grad(lambda *arguments: (forward(*arguments) ** 2).mean()))
    return loss.lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.usefixtures("full_optimization")
def test_a_scanned_stack_keeps_no_dense_weight():
    """It needs what the same method needs on dense weights, which keeps none; merging has all.

    For DoRA, see its own tests.
    """
    adapted, params, shapes = large(quantize={TARGETS: lj.NF4()})
    dense, _, shapes_dense = large()
    needed = temporary(lambda *both: adapted.apply(*both, LARGE_X), *shapes)
    assert needed < 1.1 * temporary(lambda *both: dense.apply(*both, LARGE_X), *shapes_dense)
    every_layer = nbytes([params["layers"]["up"], params["layers"]["down"]])
    assert needed < every_layer / 2
    merging = temporary(lambda *both: forward(dense.merge(*both), LARGE_X), *shapes_dense)
    assert merging > every_layer


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


@pytest.mark.parametrize("axis", ["in", "out"])
def test_sharded_weights_are_not_gathered(axis, stored):
    """Eight devices, stored weights cut along one axis: no collective of a dense weight's size."""
    adapted, moved, frozen, dense, frozen_dense = stored
    mesh = Mesh(np.array(jax.devices()), ("model",))
    sharded_axis = {"in": 1, "out": 2}[axis]

    def lay(leaf):
        names = [None] * leaf.ndim
        if leaf.ndim == 3 and leaf.shape[sharded_axis] % len(mesh.devices) == 0:
            names[sharded_axis] = "model"
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*names)))

    base = {path: jax.tree.map(lay, value) for path, value in frozen.base.items()}
    sharded = lj.Frozen(base, frozen.constants, frozen.spec, frozen.shared)

    def step(adapted):
        return jax.jit(jax.value_and_grad(lambda t, f: (adapted.apply(t, f, X) ** 2).mean()))

    compiled = step(adapted).lower(moved, sharded).compile()
    (value, got), (other, wanted) = compiled(moved, sharded), step(dense)(moved, frozen_dense)
    np.testing.assert_allclose(value, other, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), got, wanted)
    text = compiled.as_text()
    gathered = [line for line in text.splitlines() if "all-gather(" in line]
    sizes = [int(np.prod([int(n) for n in line.split("[")[1].split("]")[0].split(",") if n] or [1]))
             for line in gathered]  # fmt: skip
    assert max(sizes, default=0) < WIDTH * INNER


def test_stored_weights_go_through_files(tmp_path):
    adapted, _, trainable, frozen = adapted_by({".*(up|down)": lj.NF4(double_quant=True)})
    apply = jax.jit(adapted.apply)
    want = apply(trainable, frozen, X)

    save_tree(tmp_path / "base", frozen.base)
    base, _ = load_tree(tmp_path / "base")
    assert jax.tree.map(lambda a: str(a.dtype), base) == jax.tree.map(
        lambda a: str(a.dtype), frozen.base
    )
    read = lj.Frozen(base, frozen.constants, frozen.spec, frozen.shared)
    np.testing.assert_array_equal(apply(trainable, read, X), want)

    with Checkpoints(tmp_path / "checkpoints") as saved:
        saved.save(1, frozen)
        restored, _, _ = saved.restore(jax.eval_shape(lambda: frozen))
    np.testing.assert_array_equal(apply(trainable, restored, X), want)


def test_a_bfloat16_model_stays_narrow():
    adapted = lj.adapt(forward, LORA, "layers/up", quantize={"layers/(up|down)": lj.NF4()})
    params, x = parameters(jnp.bfloat16), X.astype(jnp.bfloat16)
    trainable, frozen = jax.eval_shape(adapted.init, jax.random.key(0), params, x)
    assert trainable["adapters"]["layers/up"]["a"].dtype == jnp.float32
    assert jax.eval_shape(adapted.apply, trainable, frozen, x).dtype == jnp.bfloat16
    merged = jax.eval_shape(adapted.merge, trainable, frozen)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}


def test_forward_over_reverse(stored):
    """Reverse mode, and forward mode over it: a product with a Hessian."""
    adapted, moved, frozen, dense, frozen_dense = stored
    direction = noisy(jax.tree.map(np.zeros_like, moved), seed=3)

    def product(adapted, frozen):
        gradient = jax.grad(lambda t: (adapted.apply(t, frozen, X) ** 2).mean())
        return jax.jvp(gradient, (moved,), (direction,))[1]

    both = jax.jit(lambda *f: [product(*each) for each in zip((adapted, dense), f, strict=True)])
    assert_close_gradients(*both(frozen, frozen_dense))
