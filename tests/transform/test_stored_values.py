"""A quantised matrix reads back as near as its codes allow, and takes the bytes it should."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from make_fixtures.quantize import NF4 as CODES
from quantized_matrices import (
    PLAIN,
    STORAGES,
    assert_same_bits,
    by_storage,
    dense_of,
    make,
    random_matrix,
    stored_and_loaded,
)

from lora_jax.quantization.quantize import NF4, Int8, Storage, quantized


def roundtrip(storage, matrix):
    return stored_and_loaded(storage, matrix)[1]


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
    rows = [np.random.RandomState(1).randint(0, shape[0], n) for n in ((), (2, 1, 4))]
    rows.append(np.arange(shape[0]))  # those at the edges of blocks, too

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


@pytest.mark.parametrize("block", [0, 1, 63, -64, 64.0, "64", True, None])
def test_a_block_is_an_even_integer(block):
    message = f"block must be an even integer of at least 2, got {block!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        NF4(block=block)


def test_storages_are_settings():
    assert NF4() == NF4(64, False) != NF4(double_quant=True)
    assert len({NF4(), NF4(block=64), Int8(), Int8(), NF4(block=32)}) == 3
    assert all(isinstance(storage, Storage) for storage in STORAGES)
