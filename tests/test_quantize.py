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
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from make_fixtures.quantize import CASES, FIXTURES, INT8_CASES, matrix_of
from make_fixtures.quantize import NF4 as CODES

from lora_jax import nf4
from lora_jax.quantize import NF4, Int8, Storage, quantized
from lora_jax.variant import Base
from variants.lora import LoRA

STORAGES = [NF4(), NF4(double_quant=True), Int8()]
by_storage = pytest.mark.parametrize("storage", STORAGES, ids=["nf4", "double", "int8"])


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


@functools.partial(jax.jit, static_argnums=0)
def store(storage, matrix):
    return storage.store(matrix)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def load(storage, stored, shape, dtype):
    return storage.load(stored, shape, dtype)


@functools.partial(jax.jit, static_argnums=1)
def scales_of(stored, shape):
    return NF4(double_quant=True)._absmax(stored, shape)


def roundtrip(storage, matrix):
    return load(storage, store(storage, matrix), matrix.shape, jnp.float32)


def random_matrix(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.RandomState(seed).standard_t(4, shape), dtype)


# -- bitsandbytes ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_nf4_is_that_of_bitsandbytes_to_the_bit(name):
    matrix, theirs = jnp.asarray(matrix_of(name)), fixture("nf4", name)
    stored = store(NF4(), matrix)
    for key, expected in our_layout(theirs, matrix.shape).items():
        assert_same_bits(stored[key], expected)
    values = load(NF4(), stored, matrix.shape, matrix.dtype)
    assert_same_bits(values, theirs["values"].astype(matrix.dtype))


@pytest.mark.parametrize("name", CASES)
def test_double_quantisation_reads_what_bitsandbytes_stores_to_the_bit(name):
    shape, theirs = CASES[name][1], fixture("nf4_double", name)
    stored = our_layout(theirs, shape)
    stored = {key: jnp.asarray(array) for key, array in stored.items()}
    values = load(NF4(double_quant=True), stored, shape, matrix_of(name).dtype)
    assert_same_bits(values, theirs["values"].astype(values.dtype))


@pytest.mark.parametrize("name", CASES)
def test_double_quantisation_stores_what_bitsandbytes_does_but_for_the_mean(name):
    matrix, theirs = jnp.asarray(matrix_of(name)), fixture("nf4_double", name)
    stored = store(NF4(double_quant=True), matrix)
    expected = our_layout(theirs, matrix.shape)
    assert {k: (a.shape, a.dtype) for k, a in stored.items()} == {
        k: (a.shape, a.dtype) for k, a in expected.items()
    }
    assert_same_bits(stored["codes"], expected["codes"])
    # The order of a sum moves the mean by a few units, and what is measured from it likewise.
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(stored["nested_offset"], expected["nested_offset"], rtol=2 * eps)
    noise = 4 * eps * np.abs(expected["nested_offset"])
    np.testing.assert_allclose(stored["nested_absmax"], expected["nested_absmax"], atol=noise)
    scales = np.asarray(scales_of(stored, matrix.shape)).T.reshape(-1)
    np.testing.assert_allclose(scales, theirs["scales"], rtol=4 * eps, atol=2 * noise)

    # Measured from the same mean, the 8-bit codes are the same.
    scales = fixture("nf4", name)["absmax"]
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
    matrix, theirs = jnp.asarray(matrix_of(name)), fixture("int8", name)
    stored = store(Int8(), matrix)
    assert_same_bits(stored["codes"], theirs["codes"].T)
    assert_same_bits(stored["absmax"], theirs["absmax"][None])
    values = load(Int8(), stored, matrix.shape, jnp.float32)
    assert_same_bits(values, theirs["values"])


@by_storage
def test_compilation_changes_no_bit(storage):
    matrix = jnp.asarray(matrix_of("many blocks"))
    stored = storage.store(matrix)
    compiled = store(storage, matrix)
    for name in stored:
        assert_same_bits(compiled[name], stored[name])
    values = storage.load(stored, matrix.shape, jnp.float32)
    assert_same_bits(load(storage, stored, matrix.shape, jnp.float32), values)


def test_there_are_cases_of_several_groups_and_none_is_trivial():
    counts = [math.prod(shape) // 64 for _, shape, _ in CASES.values()]
    assert sum(count > 256 for count in counts) >= 2 and sum(count < 256 for count in counts) > 2
    codes = np.unique(np.concatenate([fixture("nf4", name)["codes"] for name in CASES]))
    assert len(np.unique(np.concatenate([codes >> 4, codes & 15]))) == 16


# -- what the codes mean -----------------------------------------------------------------------

PLAIN = (64, 10)  # where no other matters, so that less is compiled
ODD = [(1, 1), (5, 4), (63, 2), (64, 3), (65, 3), (200, 7)]


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
    [(64, shape) for shape in ODD] + [(2, (5, 4)), (2, (65, 3)), (128, (64, 3)), (128, (200, 7))],
)
def test_each_value_is_the_nearest_code_of_its_block(shape, block):
    matrix = random_matrix(shape)
    values = roundtrip(NF4(block=block), matrix)
    assert values.shape == shape
    np.testing.assert_allclose(values, nearest_codes(np.asarray(matrix), block), rtol=1e-6)


@pytest.mark.parametrize("shape", [*ODD, (640, 30)])
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
    matrix = np.array(random_matrix(shape, dtype=dtype))
    matrix[:, -1] = 0
    values = roundtrip(Int8(), matrix)
    exact = np.asarray(matrix, np.float64)
    bound = np.abs(exact).max(0) / 127 / 2
    assert (np.abs(values - exact) <= bound * (1 + 1e-5)).all()


@pytest.mark.parametrize(
    "storage, shape",
    [(storage, shape) for storage in (NF4(), Int8()) for shape in ODD]
    + [(NF4(block=6), (5, 4)), (NF4(block=6), (200, 7))],
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
    [(NF4(), shape) for shape in ODD]
    + [(storage, shape) for storage in STORAGES[1:] for shape in ((5, 4), (200, 7))],
)
def test_rows(storage, shape):
    matrix = random_matrix(shape, dtype=jnp.bfloat16)
    base = jax.jit(functools.partial(quantized, storage))(matrix).astype(jnp.float32)
    rows = [np.random.RandomState(1).randint(0, shape[0], n) for n in ((), (3,), (2, 1, 4))]
    taken, dense = jax.jit(lambda base, rows: ([base.take(r) for r in rows], base.dense()))(
        base, rows
    )
    for each, mine in zip(rows, taken, strict=True):
        assert_same_bits(mine, np.asarray(dense)[each])


@by_storage
def test_plain_arrays_that_files_keep(storage):
    base = quantized(storage, random_matrix(PLAIN))
    arrays = safetensors.numpy.load(
        safetensors.numpy.save({name: np.asarray(a) for name, a in base.value.items()})
    )
    read = dataclasses.replace(base, value={name: jnp.asarray(a) for name, a in arrays.items()})
    assert_same_bits(read.dense(), base.dense())


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
        base = quantized(storage, random_matrix(PLAIN))
        return set(primitives(jax.make_jaxpr(lambda base: base.dense())(base).jaxpr))

    assert "select_n" in used(NF4()) and "gather" not in used(NF4())
    assert "gather" in used(NF4(double_quant=True))  # of its scales; the look finds one


# -- a base to multiply by ---------------------------------------------------------------------


def dense_like(base):
    return Base(base.dense(), "io", base.accumulate)


def network(base, x):
    return jnp.tanh(base.dot_t(jnp.tanh(base.dot(x))))


@by_storage
@pytest.mark.parametrize("shape, dtype", [((130, 6), jnp.bfloat16), ((63, 70), jnp.float64)])
def test_products_and_gradients_are_those_of_the_dense_matrix(storage, shape, dtype, x64):
    base = jax.jit(functools.partial(quantized, storage))(random_matrix(shape, dtype=dtype) / 8)
    assert (base.shape, base.dtype, base.dense().dtype) == (shape, dtype, dtype)
    x = random_matrix((2, 3, shape[0]), 1, dtype)

    @jax.jit
    def both(base, x):
        y, pull = jax.vjp(functools.partial(network, base), x)
        expected, pull_expected = jax.vjp(functools.partial(network, dense_like(base)), x)
        return (y, *pull(y)), (expected, *pull_expected(expected))

    for mine, theirs in zip(*both(base, x), strict=True):
        assert mine.dtype == theirs.dtype == dtype
        np.testing.assert_allclose(
            np.float64(mine), np.float64(theirs), rtol=8 * jnp.finfo(dtype).eps, atol=1e-12
        )


@by_storage
def test_forward_over_reverse(storage, x64):
    matrix = random_matrix((70, 6), dtype=jnp.float64) / 8
    base = jax.jit(functools.partial(quantized, storage))(matrix)
    x, tangent = (random_matrix((4, 70), seed, jnp.float64) for seed in (1, 2))

    @jax.jit
    def curvature(base):
        gradient = jax.grad(lambda x: jnp.sum(network(base, x) ** 2))
        return jax.jvp(gradient, (x,), (tangent,))

    for mine, theirs in zip(curvature(base), curvature(dense_like(base)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-14)


def test_no_gradient_reaches_what_is_stored():
    for storage in STORAGES:
        base = quantized(storage, random_matrix(PLAIN))

        def use(base):
            rows, x = jnp.arange(3), jnp.ones((2, 64))
            return sum(jnp.sum(y**2) for y in (base.dot(x), base.dense(), base.take(rows)))

        gradient = jax.jit(jax.grad(use, allow_int=True))(base)
        for name, leaf in gradient.value.items():
            stored = base.value[name].dtype
            assert leaf.dtype == (stored if stored == jnp.float32 else jax.dtypes.float0)
            assert leaf.dtype == jax.dtypes.float0 or not leaf.any()


@by_storage
def test_stacks_and_transformations(storage, x64):
    """vmap over stored matrices and over x, scan, remat, jit: all equal to a Python loop."""
    count, size = 3, 66
    matrices = random_matrix((count, size, size), dtype=jnp.float64) / 16
    stacked = jax.jit(jax.vmap(functools.partial(quantized, storage)))(matrices)
    xs = random_matrix((count, 4, size), 1, jnp.float64)

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

    def pairs(stacked, xs):
        bases = each(stacked)
        one_by_one = [dense_like(base).dot(x) for base, x in zip(bases, xs, strict=True)]
        return {
            "matrices": (jax.vmap(lambda base, x: base.dot(x))(stacked, xs), jnp.stack(one_by_one)),
            "inputs": (jax.vmap(bases[0].dot_t)(xs), jax.vmap(dense_like(bases[0]).dot_t)(xs)),
            "scan": (scanned(stacked, xs[0]), layered(stacked, xs[0])),
            "gradients": (gradients(scanned, stacked, xs), gradients(layered, stacked, xs)),
        }

    for mine, theirs in jax.jit(pairs)(stacked, xs).values():
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-14)
    for index, base in enumerate(each(stacked)):  # a stack is stored as its matrices are
        alone = store(storage, matrices[index])
        for name, array in base.value.items():
            np.testing.assert_allclose(array, alone[name], rtol=1e-6)


def test_casts_follow_one_another():
    base = quantized(NF4(), random_matrix(PLAIN))
    narrowed = base.astype(jnp.bfloat16).astype(jnp.float32)
    assert narrowed.dtype == jnp.float32 and narrowed.dtypes[1:] == (jnp.bfloat16, jnp.float32)
    expected = base.dense().astype(jnp.bfloat16).astype(jnp.float32)
    assert_same_bits(narrowed.dense(), expected)
    assert_same_bits(narrowed.take(jnp.arange(4)), expected[:4])
    assert (np.asarray(expected) != np.asarray(base.dense())).any()


@pytest.mark.parametrize("accumulate", [None, jnp.float32])
def test_products_accumulate_as_those_of_a_dense_base(accumulate):
    base = quantized(Int8(), random_matrix((64, 32), dtype=jnp.bfloat16))
    base = dataclasses.replace(base, accumulate=accumulate)
    x = random_matrix((8, 64), 1, jnp.bfloat16)
    y, pull = jax.vjp(base.dot, x)
    expected, pull_expected = jax.vjp(dense_like(base).dot, x)
    assert_same_bits(y, expected)
    assert y.dtype == (accumulate or jnp.bfloat16)
    assert_same_bits(pull(y)[0], pull_expected(y)[0])


def test_the_backward_pass_has_the_precision_of_the_product():
    base = quantized(NF4(), random_matrix(PLAIN))

    def loss(x):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(base.dot(x))

    text = str(jax.make_jaxpr(jax.grad(loss))(jnp.ones((2, 64))))
    assert text.count("dot_general") == 2
    assert len(re.findall(r"precision=\(Precision.HIGHEST, Precision.HIGHEST\)", text)) == 2


@by_storage
def test_a_variant_on_top(storage):
    base = quantized(storage, random_matrix(PLAIN))
    variant = LoRA(rank=3)
    factors = variant.init(jax.random.key(0), base)
    factors.trainable["b"] = random_matrix((3, 10), 1)
    x, rows = random_matrix((5, 64), 2), jnp.arange(4)
    assert_same_bits(variant.dot(x, base, factors), variant.dot(x, dense_like(base), factors))
    assert_same_bits(
        variant.take(rows, base, factors), variant.take(rows, dense_like(base), factors)
    )
    weight = variant.weight(base, factors)
    np.testing.assert_allclose(variant.dot(x, base, factors), x @ weight, rtol=1e-4, atol=1e-4)


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
    assert temporary_bytes(storage, differentiated, "scan") >= DENSE_BYTES


@pytest.mark.usefixtures("full_optimization")
@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="XLA:CPU drops optimization barriers")
@by_storage
def test_layers_one_by_one_keep_nothing_dense(storage):
    assert temporary_bytes(storage, requantised, "one by one") < 0.5 * DENSE_BYTES
    assert temporary_bytes(storage, differentiated, "one by one") >= DENSE_BYTES


LAYOUTS = {"in": P("x", None), "out": P(None, "x")}
by_layout = pytest.mark.parametrize(
    "storage, layout",
    [(NF4(), "in"), (NF4(), "out"), (NF4(double_quant=True), "in"), (Int8(), "out")],
)
make = jax.jit(quantized, static_argnums=0)


def laid_out(base, mesh, layout):
    """The stored arrays of a matrix on devices, those of its shape divided like it."""

    def lay(name, array):
        whole = array.ndim < 2 or (array.shape[0] == 1 and layout == "in")
        return jax.device_put(array, NamedSharding(mesh, P() if whole else LAYOUTS[layout]))

    value = {name: lay(name, array) for name, array in base.value.items()}
    return dataclasses.replace(base, value=value)


def scaled_matrix():
    return jnp.asarray(np.asarray(random_matrix((WIDTH, WIDTH))) / np.float32(WIDTH**0.5))


@jax.jit
def product_and_gradient(base, x):
    y, pull = jax.vjp(lambda x: jnp.tanh(base.dot(x)), x)
    return y, pull(y)[0]


def moved_sizes(compiled):
    """How many numbers each collective operation of a program yields."""
    kinds = "all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"
    found = re.findall(rf"= \(?\w+\[([\d,]*)\].*? (?:{kinds})(?:-start)?\(", compiled.as_text())
    return [math.prod(int(n) for n in shape.split(",") if n) for shape in found]


@pytest.mark.usefixtures("full_optimization")
@by_layout
def test_nothing_of_a_weights_size_is_gathered(storage, layout):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    matrix, x = scaled_matrix(), random_matrix((16, WIDTH), 1)
    base = make(storage, matrix)
    sharded = laid_out(base, mesh, layout)
    step = product_and_gradient.lower(sharded, x).compile()
    assert moved_sizes(step) and max(moved_sizes(step)) <= x.size  # the sum of a product
    assert step.memory_analysis().temp_size_in_bytes < WIDTH * WIDTH * 4 / 2
    for mine, theirs in zip(step(sharded, x), product_and_gradient(base, x), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)

    def gathered(base, x):
        whole = lax.with_sharding_constraint(base.dense(), NamedSharding(mesh, P()))
        return product_and_gradient(Base(whole, "io"), x)

    assert max(moved_sizes(jax.jit(gathered).lower(sharded, x).compile())) == WIDTH * WIDTH

    # Storing is as local: the scales at most are moved.
    matrix = jax.device_put(matrix, NamedSharding(mesh, LAYOUTS[layout]))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, sharded.value)
    storing = jax.jit(storage.store, out_shardings=shardings).lower(matrix).compile()
    assert max(moved_sizes(storing), default=0) <= WIDTH * WIDTH // 64


@by_layout
def test_explicit_shardings(storage, layout):
    """Shardings as a part of types: as of a dense matrix."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    matrix, x = scaled_matrix(), random_matrix((16, WIDTH), 1)
    expected = product_and_gradient(make(storage, matrix), x)
    with jax.set_mesh(mesh):
        base = make(storage, jax.device_put(matrix, NamedSharding(mesh, LAYOUTS[layout])))
        dense = jax.jit(lambda base: base.dense())(base)
        dense = Base(jax.device_put(dense, NamedSharding(mesh, LAYOUTS[layout])), "io")
        mine, theirs = (product_and_gradient(each, x) for each in (base, dense))
        assert jax.tree.map(jax.typeof, mine) == jax.tree.map(jax.typeof, theirs)
    for one, other in zip(mine, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@by_storage
def test_shard_map_over_the_batch(storage):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    base, x = quantized(storage, random_matrix((64, 6)) / 8), random_matrix((16, 64), 1)
    spread = jax.shard_map(network, mesh=mesh, in_specs=(P(), P("x")), out_specs=P("x"))

    def gradient(function):
        return jax.jit(jax.grad(lambda x, base: jnp.sum(function(base, x) ** 2)))(x, base)

    np.testing.assert_allclose(gradient(spread), gradient(network), rtol=1e-5, atol=1e-6)


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
