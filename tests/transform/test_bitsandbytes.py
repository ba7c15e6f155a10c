"""NF4 and int8 storage hold the same bits as bitsandbytes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from make_fixtures.quantize import CASES, FIXTURES, INT8_CASES, matrix_of
from quantized_matrices import assert_same_bits, by_storage, stored_and_loaded

from lora_jax.quantization import nf4
from lora_jax.quantization.quantize import NF4, Int8


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


@jax.jit
def both_nf4(matrix, theirs):
    """What NF4 stores and loads, doubly quantised stores, with its scales, and loads of theirs."""
    single, double = NF4(), NF4(double_quant=True)
    stored, nested = single.store(matrix), double.store(matrix)
    values = single.load(stored, matrix.shape, matrix.dtype)
    read = double.load(theirs, matrix.shape, matrix.dtype)
    return stored, values, nested, double._absmax(nested, matrix.shape), read


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


def test_each_code_of_a_scale_stands_for_its_value():
    scale, codes = np.float32(3), np.arange(256, dtype=np.uint8)
    values = nf4.decode_dynamic(codes, jnp.full(256, scale), jnp.zeros(()))
    np.testing.assert_array_equal(values, scale * nf4.DYNAMIC)


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
