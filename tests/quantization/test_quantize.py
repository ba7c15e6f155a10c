"""Quantised storage: bitsandbytes' values to the bit, and a product that keeps nothing dense."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from make_fixtures.quantize import CASES, FIXTURES, INT8_CASES, NF4 as CODES, matrix_of

from lora_jax.quantization import nf4
from lora_jax.quantization.quantize import NF4, Int8, Storage, quantized
from lora_jax.variant import Base
from variants.lora import LoRA

STORAGES = [NF4(), NF4(double_quant=True), Int8()]
by_storage = pytest.mark.parametrize("storage", STORAGES[1:], ids=["double", "int8"])
"""Double quantisation does all that NF4 does, and nests its scales."""


def fixture(kind, name):
    arrays = np.load(FIXTURES / f"quantize_{kind}.npz")
    return {
        key.rpartition("/")[2]: arrays[key] for key in arrays.files if key.startswith(f"{name}/")
    }


def our_layout(theirs, shape):
    """Arrays of bitsandbytes, flat over (out, in), as ours: (in, out)."""
    inputs, outputs = shape
    return {
        **{name: theirs[name] for name in theirs if name.startswith("nested")},
        "codes": theirs["codes"].reshape(outputs, inputs // 2).T,
        "absmax": theirs["absmax"].reshape(outputs, inputs // 64).T,
    }


def assert_same_bits(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(actual, expected)


store = jax.jit(lambda storage, matrix: storage.store(matrix), static_argnums=0)
make = jax.jit(quantized, static_argnums=0)
dense_of = jax.jit(lambda base: base.dense())


@functools.partial(jax.jit, static_argnums=0)
def stored_and_loaded(storage, matrix):
    stored = storage.store(matrix)
    return stored, storage.load(stored, matrix.shape, jnp.float32)


def roundtrip(storage, matrix):
    return stored_and_loaded(storage, matrix)[1]


@jax.jit
def both_nf4(matrix, theirs):
    """What NF4 stores and loads, doubly quantised stores, with its scales, and loads of theirs."""
    single, double = NF4(), NF4(double_quant=True)
    stored, nested = single.store(matrix), double.store(matrix)
    values = single.load(stored, matrix.shape, matrix.dtype)
    read = double.load(theirs, matrix.shape, matrix.dtype)
    return stored, values, nested, double._absmax(nested, matrix.shape), read


def random_matrix(shape, seed=0, dtype=np.float32):
    return np.random.RandomState(seed).standard_t(4, shape).astype(dtype)


# -- bitsandbytes ------------------------------------------------------------------------------


def nf4_of(name):
    """`both_nf4` of a case, and what bitsandbytes has stored, once and twice quantised."""
    matrix, kinds = matrix_of(name), [fixture(kind, name) for kind in ("nf4", "nf4_double")]
    expected = [our_layout(theirs, matrix.shape) for theirs in kinds]
    return both_nf4(matrix, expected[1]), kinds, expected


@pytest.mark.parametrize("name", CASES)
def test_nf4_is_that_of_bitsandbytes_to_the_bit(name):
    (stored, values, _, _, read), (theirs, theirs_double), (expected, _) = nf4_of(name)
    for key, array in expected.items():
        assert_same_bits(stored[key], array)
    assert_same_bits(values, theirs["values"].astype(values.dtype))
    assert_same_bits(read, theirs_double["values"].astype(read.dtype))


@pytest.mark.parametrize("name", CASES)
def test_double_quantisation_stores_what_bitsandbytes_does_but_for_the_mean(name):
    (_, _, stored, scales, _), (single, theirs), (_, expected) = nf4_of(name)
    assert {k: (a.shape, a.dtype) for k, a in stored.items()} == {
        k: (a.shape, a.dtype) for k, a in expected.items()
    }
    assert_same_bits(stored["codes"], expected["codes"])
    # The order of a sum moves the mean by a few units, and what is measured from it likewise.
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(stored["nested_offset"], expected["nested_offset"], rtol=2 * eps)
    noise = 4 * eps * np.abs(expected["nested_offset"])
    np.testing.assert_allclose(stored["nested_absmax"], expected["nested_absmax"], atol=noise)
    scales = np.asarray(scales).T.reshape(-1)
    np.testing.assert_allclose(scales, theirs["scales"], rtol=4 * eps, atol=2 * noise)

    # Measured from the same mean, the 8-bit codes are the same.
    scales = single["absmax"]
    groups = np.zeros(-(-len(scales) // 256) * 256, np.float32)
    groups[: len(scales)] = scales - theirs["nested_offset"]
    groups = groups.reshape(-1, 256)
    greatest = np.abs(groups).max(1, keepdims=True)
    assert_same_bits(greatest[:, 0], theirs["nested_absmax"])
    codes = jax.jit(nf4.encode_dynamic)(groups / np.where(greatest, greatest, 1))
    meant = np.broadcast_to(greatest > 0, groups.shape).reshape(-1)[: len(scales)]
    codes = np.asarray(codes).reshape(-1)[: len(scales)]
    assert_same_bits(codes[meant], theirs["absmax"][meant])


@pytest.mark.parametrize("name", INT8_CASES)
def test_int8_is_that_of_bitsandbytes_to_the_bit(name):
    matrix, theirs = matrix_of(name), fixture("int8", name)
    stored, values = stored_and_loaded(Int8(), matrix)
    assert_same_bits(stored["codes"], theirs["codes"].T)
    assert_same_bits(stored["absmax"], theirs["absmax"][None])
    assert_same_bits(values, theirs["values"])


@by_storage
def test_compilation_changes_no_bit(storage):
    matrix = matrix_of("many blocks")
    compiled, values = stored_and_loaded(storage, matrix)
    stored = storage.store(jnp.asarray(matrix))
    for name in stored:
        assert_same_bits(compiled[name], stored[name])
    assert_same_bits(values, storage.load(stored, matrix.shape, jnp.float32))


def test_there_are_cases_of_several_groups_and_none_is_trivial():
    counts = [math.prod(shape) // 64 for _, shape, _ in CASES.values()]
    assert sum(count > 256 for count in counts) >= 2 and sum(count < 256 for count in counts) > 2
    codes = np.unique(np.concatenate([fixture("nf4", name)["codes"] for name in CASES]))
    assert len(np.unique(np.concatenate([codes >> 4, codes & 15]))) == 16


# -- what the codes mean -----------------------------------------------------------------------

PLAIN = (64, 10)  # where no other matters, so that less is compiled
ODD = [(1, 1), (64, 3), (65, 3), (200, 7)]


def nearest_codes(matrix, block):
    """Each number's nearest code times the greatest magnitude of its block, by brute force."""
    nearest = np.empty(matrix.shape)
    for start in range(0, len(matrix), block):
        part = matrix[start : start + block].astype(np.float64)
        scale = np.abs(part).max(0)
        values = np.array(CODES)[:, None, None] * scale
        choice = np.abs(values - part).argmin(0)
        nearest[start : start + block] = np.take_along_axis(values, choice[None], 0)[0]
    return nearest


@pytest.mark.parametrize(
    "block, shape",
    [(64, shape) for shape in ODD] + [(2, (65, 3)), (128, (200, 7))],
)
def test_each_value_is_the_nearest_code_of_its_block(shape, block):
    matrix = random_matrix(shape)
    values = roundtrip(NF4(block=block), matrix)
    assert values.shape == shape
    np.testing.assert_allclose(values, nearest_codes(matrix, block), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (200, 7), (640, 30)])
def test_double_quantisation_moves_a_scale_by_half_a_step_at_most(shape):
    @jax.jit
    def scales(matrix):
        stored = NF4(double_quant=True).store(matrix)
        read = NF4(double_quant=True)._absmax(stored, shape)
        return read, NF4().store(matrix)["absmax"], stored["nested_absmax"].max()

    read, exact, greatest = scales(random_matrix(shape))
    # Half of the widest gap of the 8-bit map, and one of the 2^16 steps before it.
    assert np.abs(read - exact).max() <= (0.9 / 64 / 2 + 2**-15) * greatest + 1e-6


@pytest.mark.parametrize(
    "dtype, shape",
    [(jnp.float32, shape) for shape in ODD] + [(jnp.bfloat16, (65, 3)), (jnp.float16, (200, 7))],
)
def test_int8_is_no_further_than_half_a_step(shape, dtype):
    matrix = random_matrix(shape, dtype=dtype)
    matrix[:, -1] = 0
    values = roundtrip(Int8(), matrix)
    exact = np.asarray(matrix, np.float64)
    bound = np.abs(exact).max(0) / 127 / 2
    assert (np.abs(values - exact) <= bound * (1 + 1e-5)).all()


@pytest.mark.parametrize(
    "storage, shape",
    [(storage, shape) for storage in (NF4(), Int8()) for shape in ODD] + [(NF4(block=6), (200, 7))],
)
def test_storing_what_was_loaded_changes_nothing(storage, shape):
    values = roundtrip(storage, random_matrix(shape))
    again = roundtrip(storage, values)
    np.testing.assert_allclose(again, values, rtol=0 if isinstance(storage, NF4) else 3e-7)


@pytest.mark.parametrize("shape", [(64, 1), (4096, 4096), (768, 3072), (1024, 256)])
def test_bytes(shape):
    weights = math.prod(shape)
    expected = {
        NF4(): weights / 2 + weights / 64 * 4,
        NF4(double_quant=True): weights / 2 + weights / 64 + -(-weights // (64 * 256)) * 4 + 4,
        Int8(): weights + 4 * shape[1],
    }
    for storage, count in expected.items():
        like = jax.eval_shape(storage.store, jax.ShapeDtypeStruct(shape, jnp.float32))
        assert sum(a.size * a.dtype.itemsize for a in like.values()) == count
        back = jax.eval_shape(lambda s: storage.load(s, shape, jnp.bfloat16), like)  # noqa: B023
        assert (back.shape, back.dtype) == (shape, jnp.bfloat16)
    assert expected[NF4()] <= 0.16 * 4 * weights
    if weights > 2**14:
        assert expected[NF4(double_quant=True)] <= 0.13 * 4 * weights


@pytest.mark.parametrize(
    "storage, shape",
    [
        *((NF4(), (1, 1)), (NF4(), (65, 3)), (NF4(block=32), (65, 3))),
        *((NF4(double_quant=True), (200, 7)), (Int8(), (5, 4))),
    ],
)
def test_rows(storage, shape):
    rows = [np.random.RandomState(1).randint(0, shape[0], n) for n in ((), (3,), (2, 1, 4))]

    @jax.jit
    def taken(matrix, rows):
        base = quantized(storage, matrix).astype(jnp.float32)
        return [base.take(r) for r in rows], base.dense()

    taken, dense = taken(random_matrix(shape, dtype=jnp.bfloat16), rows)
    for each, mine in zip(rows, taken, strict=True):
        assert_same_bits(mine, np.asarray(dense)[each])


@by_storage
def test_plain_arrays_that_files_keep(storage):
    base = make(storage, random_matrix(PLAIN))
    arrays = safetensors.numpy.load(
        safetensors.numpy.save({name: np.asarray(a) for name, a in base.value.items()})
    )
    read = dataclasses.replace(base, value={name: jnp.asarray(a) for name, a in arrays.items()})
    assert_same_bits(dense_of(read), dense_of(base))


def primitives(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                yield from primitives(getattr(inner, "jaxpr", inner))


def test_nf4_is_read_without_a_gather():
    def used(storage):
        base = make(storage, random_matrix(PLAIN))
        return set(primitives(jax.make_jaxpr(lambda base: base.dense())(base).jaxpr))

    assert "select_n" in used(NF4()) and "gather" not in used(NF4())
    assert "gather" in used(NF4(double_quant=True))  # of its scales; the look finds one


# -- a base to multiply by ---------------------------------------------------------------------


def dense_like(base):
    return Base(base.dense(), "io", base.accumulate)


def network(base, x):
    return jnp.tanh(base.dot_t(jnp.tanh(base.dot(x))))


@pytest.mark.parametrize(
    "storage, shape, dtype",
    [
        (NF4(), (63, 70), jnp.float64),
        (NF4(double_quant=True), (130, 6), jnp.bfloat16),
        (Int8(), (130, 6), jnp.bfloat16),
        (Int8(), (63, 70), jnp.float64),
    ],
)
def test_products_and_gradients_are_those_of_the_dense_matrix(storage, shape, dtype, x64):
    matrix = random_matrix(shape, dtype=dtype) / np.asarray(8, dtype)
    x = random_matrix((2, 3, shape[0]), 1, dtype)

    @jax.jit
    def both(matrix, x):
        base = quantized(storage, matrix)
        assert (base.shape, base.dtype, base.dense().dtype) == (shape, dtype, dtype)
        y, pull = jax.vjp(functools.partial(network, base), x)
        expected, pull_expected = jax.vjp(functools.partial(network, dense_like(base)), x)
        return (y, *pull(y)), (expected, *pull_expected(expected))

    for mine, theirs in zip(*both(matrix, x), strict=True):
        assert mine.dtype == theirs.dtype == dtype
        np.testing.assert_allclose(
            np.float64(mine), np.float64(theirs), rtol=8 * jnp.finfo(dtype).eps, atol=1e-12
        )


@by_storage
def test_forward_over_reverse(storage, x64):
    matrix = random_matrix((70, 6), dtype=np.float64) / 8
    x, tangent = (random_matrix((4, 70), seed, np.float64) for seed in (1, 2))

    def curvature(base):
        gradient = jax.grad(lambda x: jnp.sum(network(base, x) ** 2))
        return jax.jvp(gradient, (x,), (tangent,))

    @jax.jit
    def both(matrix):
        base = quantized(storage, matrix)
        return curvature(base), curvature(dense_like(base))

    for mine, theirs in zip(*both(matrix), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-14)


def test_no_gradient_reaches_what_is_stored():
    for storage in STORAGES:
        base = make(storage, random_matrix(PLAIN))

        def use(base):
            rows, x = np.arange(3), jnp.ones((2, 64))
            return sum(jnp.sum(y**2) for y in (base.dot(x), base.dense(), base.take(rows)))

        gradient = jax.jit(jax.grad(use, allow_int=True))(base)
        for name, leaf in gradient.value.items():
            stored = base.value[name].dtype
            assert leaf.dtype == (stored if stored == jnp.float32 else jax.dtypes.float0)
            assert leaf.dtype == jax.dtypes.float0 or not leaf.any()


@by_storage
def test_stacks_and_transformations(storage, x64):
    """vmap over stored matrices and over x, scan, remat, jit: all equal to a Python loop."""
    count, size = 2, 66
    matrices = random_matrix((count, size, size), dtype=np.float64) / 16
    xs = random_matrix((count, 4, size), 1, np.float64)

    def each(stacked):
        return [jax.tree.map(lambda leaf: leaf[index], stacked) for index in range(count)]  # noqa: B023

    def layered(stacked, x):
        for base in each(stacked):
            x = network(dense_like(base), x)
        return x

    def scanned(stacked, x):
        return lax.scan(jax.checkpoint(lambda x, b: (network(b, x), None)), x, stacked)[0]

    def gradients(layers, stacked, xs):
        return jax.vmap(jax.grad(lambda x: jnp.sum(layers(stacked, x) ** 2)))(xs)

    @jax.jit
    def pairs(matrices, xs):
        stacked = jax.vmap(functools.partial(quantized, storage))(matrices)
        bases = each(stacked)
        alone = [quantized(storage, matrix).value for matrix in matrices]
        one_by_one = [dense_like(base).dot(x) for base, x in zip(bases, xs, strict=True)]
        return {
            "matrices": (jax.vmap(lambda base, x: base.dot(x))(stacked, xs), jnp.stack(one_by_one)),
            "inputs": (jax.vmap(bases[0].dot_t)(xs), jax.vmap(dense_like(bases[0]).dot_t)(xs)),
            "scan": (scanned(stacked, xs[0]), layered(stacked, xs[0])),
            "gradients": (gradients(scanned, stacked, xs), gradients(layered, stacked, xs)),
        }, ([base.value for base in bases], alone)

    products, (stored, alone) = pairs(matrices, xs)
    for mine, theirs in products.values():
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-14)
    for one, other in zip(stored, alone, strict=True):  # a stack is stored as its matrices are
        for name, array in one.items():
            np.testing.assert_allclose(array, other[name], rtol=1e-6)


def test_casts_follow_one_another():
    base = make(NF4(), random_matrix(PLAIN))
    narrowed = base.astype(jnp.bfloat16).astype(jnp.float32)
    assert narrowed.dtype == jnp.float32 and narrowed.dtypes[1:] == (jnp.bfloat16, jnp.float32)
    dense, taken = jax.jit(lambda base: (base.dense(), base.take(np.arange(4))))(narrowed)
    whole = np.asarray(dense_of(base))
    expected = whole.astype(jnp.bfloat16).astype(np.float32)
    assert_same_bits(dense, expected)
    assert_same_bits(taken, expected[:4])
    assert (expected != whole).any()


@pytest.mark.parametrize("accumulate", [None, jnp.float32])
def test_products_accumulate_as_those_of_a_dense_base(accumulate):
    base = make(Int8(), random_matrix((64, 32), dtype=jnp.bfloat16))
    base = dataclasses.replace(base, accumulate=accumulate)

    @jax.jit
    def both(base, x):
        y, pull = jax.vjp(base.dot, x)
        expected, pull_expected = jax.vjp(dense_like(base).dot, x)
        return (y, pull(y)[0]), (expected, pull_expected(y)[0])

    mine, theirs = both(base, random_matrix((8, 64), 1, jnp.bfloat16))
    assert mine[0].dtype == (accumulate or jnp.bfloat16)
    for one, other in zip(mine, theirs, strict=True):
        assert_same_bits(one, other)


def test_the_backward_pass_has_the_precision_of_the_product():
    base = make(NF4(), random_matrix(PLAIN))

    def loss(x):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(base.dot(x))

    text = str(jax.make_jaxpr(jax.grad(loss))(np.ones((2, 64), np.float32)))
    assert text.count("dot_general") == 2
    assert len(re.findall(r"precision=\(Precision.HIGHEST, Precision.HIGHEST\)", text)) == 2


@by_storage
def test_a_variant_on_top(storage):
    variant = LoRA(rank=3)

    @jax.jit
    def computed(matrix, x, b):
        base = quantized(storage, matrix)
        factors = variant.init(jax.random.key(0), base)
        factors.trainable["b"] = b
        each = [
            (variant.dot(x, base, factors), variant.take(np.arange(4), base, factors))
            for base in (base, dense_like(base))
        ]
        return each, variant.weight(base, factors)

    x = random_matrix((5, 64), 2)
    (mine, theirs), weight = computed(random_matrix(PLAIN), x, random_matrix((3, 10), 1))
    for one, other in zip(mine, theirs, strict=True):
        assert_same_bits(one, other)
    np.testing.assert_allclose(mine[0], x @ np.asarray(weight), rtol=1e-4, atol=1e-4)


# -- memory and devices ------------------------------------------------------------------------

LAYERS, WIDTH = 8, 512


def training_step(multiply, loop):
    """The gradient with respect to LoRA factors and x, of layers in a scan or one by one."""

    def loss(trained, stacked):
        def layer(x, both):
            (a, b), base = both
            return jnp.tanh(multiply(base, x) + (x @ a.T) @ b), None

        factors, x = trained
        if loop == "scan":
            x, _ = lax.scan(layer, x, (factors, stacked))
        else:
            for index in range(LAYERS):
                x, _ = layer(x, jax.tree.map(lambda leaf: leaf[index], (factors, stacked)))  # noqa: B023
        return jnp.mean(x**2)

    return jax.grad(loss)


def temporary_bytes(storage, multiply, loop):
    matrices = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32)
    stacked = jax.eval_shape(jax.vmap(functools.partial(quantized, storage)), matrices)
    factors = [jax.ShapeDtypeStruct((LAYERS, 4, WIDTH), jnp.float32)] * 2
    trained = (factors, jax.ShapeDtypeStruct((16, WIDTH), jnp.float32))
    compiled = jax.jit(training_step(multiply, loop)).lower(trained, stacked).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def requantised(base, x):
    return base.dot(x)


def differentiated(base, x):
    """What automatic differentiation keeps: the dense matrix."""
    return dense_like(base).dot(x)


DENSE_BYTES = LAYERS * WIDTH * WIDTH * 4


@pytest.mark.usefixtures("full_optimization")
@by_storage
def test_scanned_layers_keep_nothing_dense(storage):
    assert temporary_bytes(storage, requantised, "scan") < 0.3 * DENSE_BYTES
    if storage == Int8():  # and the look finds what is kept
        assert temporary_bytes(storage, differentiated, "scan") >= DENSE_BYTES


@pytest.mark.usefixtures("full_optimization")
@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="XLA:CPU drops optimization barriers")
@by_storage
def test_layers_one_by_one_keep_nothing_dense(storage):
    assert temporary_bytes(storage, requantised, "one by one") < 0.5 * DENSE_BYTES
    if storage == Int8():
        assert temporary_bytes(storage, differentiated, "one by one") >= DENSE_BYTES


LAYOUTS = {"in": P("x", None), "out": P(None, "x")}
by_layout = pytest.mark.parametrize(
    "storage, layout", [(NF4(), "out"), (NF4(double_quant=True), "in"), (Int8(), "out")]
)


def laid_out(base, mesh, layout):
    """The stored arrays of a matrix on devices, those of its shape divided like it."""

    def lay(name, array):
        whole = array.ndim < 2 or (array.shape[0] == 1 and layout == "in")
        return jax.device_put(array, NamedSharding(mesh, P() if whole else LAYOUTS[layout]))

    value = {name: lay(name, array) for name, array in base.value.items()}
    return dataclasses.replace(base, value=value)


def product_and_gradient(base, x):
    y, pull = jax.vjp(lambda x: jnp.tanh(base.dot(x)), x)
    return y, pull(y)[0]


def example(storage):
    """A matrix, its stored form, an input, and `product_and_gradient` of them."""
    matrix, x = (
        random_matrix((WIDTH, WIDTH)) / np.float32(WIDTH**0.5),
        random_matrix((16, WIDTH), 1),
    )
    base = make(storage, matrix)
    dense = np.asarray(dense_of(base))
    y = np.tanh(x @ dense)
    return matrix, base, x, (y, (y * (1 - y**2)) @ dense.T)


def moved_sizes(compiled):
    """How many numbers each collective operation of a program yields."""
    kinds = "all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"
    found = re.findall(rf"= \(?\w+\[([\d,]*)\].*? (?:{kinds})(?:-start)?\(", compiled.as_text())
    return [math.prod(int(n) for n in shape.split(",") if n) for shape in found]


@pytest.mark.usefixtures("full_optimization")
@by_layout
def test_nothing_of_a_weights_size_is_gathered(storage, layout):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    matrix, base, x, expected = example(storage)
    sharded = laid_out(base, mesh, layout)
    step = jax.jit(product_and_gradient).lower(sharded, x).compile()
    assert moved_sizes(step) and max(moved_sizes(step)) <= x.size  # the sum of a product
    assert step.memory_analysis().temp_size_in_bytes < WIDTH * WIDTH * 4 / 2
    for mine, theirs in zip(step(sharded, x), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)

    # Storing is as local: the scales at most are moved.
    matrix = jax.device_put(matrix, NamedSharding(mesh, LAYOUTS[layout]))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, sharded.value)
    storing = jax.jit(storage.store, out_shardings=shardings).lower(matrix).compile()
    assert max(moved_sizes(storing), default=0) <= WIDTH * WIDTH // 64


@pytest.mark.usefixtures("full_optimization")
def test_a_gathered_weight_would_be_noticed():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    _, base, x, _ = example(Int8())

    def gathered(base, x):
        whole = lax.with_sharding_constraint(base.dense(), NamedSharding(mesh, P()))
        return Base(whole, "io").dot(x)

    compiled = jax.jit(gathered).lower(laid_out(base, mesh, "out"), x).compile()
    assert max(moved_sizes(compiled)) == WIDTH * WIDTH


@by_layout
def test_explicit_shardings(storage, layout):
    """Shardings as a part of types: as of a dense matrix."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    matrix, _, x, expected = example(storage)

    @jax.jit
    def both(matrix, x):
        base = quantized(storage, matrix)
        dense = Base(jax.sharding.reshard(base.dense(), LAYOUTS[layout]), "io")
        return product_and_gradient(base, x), product_and_gradient(dense, x)

    with jax.set_mesh(mesh):
        matrix = jax.device_put(matrix, NamedSharding(mesh, LAYOUTS[layout]))
        mine, theirs = both(matrix, x)
        assert jax.tree.map(jax.typeof, mine) == jax.tree.map(jax.typeof, theirs)
    for one, other in zip(mine, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@by_storage
def test_shard_map_over_the_batch(storage):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    spread = jax.shard_map(network, mesh=mesh, in_specs=(P(), P("x")), out_specs=P("x"))

    @jax.jit
    def gradients(base, x):
        return [
            jax.grad(lambda x: jnp.sum(function(base, x) ** 2))(x)  # noqa: B023
            for function in (spread, network)
        ]

    base = make(storage, random_matrix((64, 6)) / np.float32(8))
    np.testing.assert_allclose(*gradients(base, random_matrix((16, 64), 1)), rtol=1e-5, atol=1e-6)


# -- bad settings ------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [0, 1, 63, -64, 64.0, "64", True, None])
def test_a_block_is_an_even_integer(block):
    message = f"block must be an even integer of at least 2, got {block!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        NF4(block=block)


def test_storages_are_settings():
    assert NF4() == NF4(64, False) != NF4(double_quant=True)
    assert len({NF4(), NF4(block=64), Int8(), Int8(), NF4(block=32)}) == 3
    assert all(isinstance(storage, Storage) for storage in STORAGES)
