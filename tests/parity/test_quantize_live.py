"""Quantised storage beside bitsandbytes and qwix, both running, over random matrices."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from make_fixtures.quantize import NF4 as CODES, int8, nf4

from lora_jax.quantization.quantize import NF4, Int8

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

EPS = np.finfo(np.float32).eps
DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16]


# Seeds 0, 1, 2 and 5 have every distribution, dtype and number of blocks.
def random_matrix(seed, block=64):
    """Of any size whose in axis a block divides, in any dtype; some of it zero."""
    random = np.random.RandomState(seed)
    shape = block * random.randint(1, 9), random.randint(1, 200)
    draws = [random.randn, lambda *n: random.standard_t(2, n), lambda *n: random.laplace(size=n)]
    matrix = draws[random.randint(3)](*shape) * 10.0 ** random.randint(-3, 2)
    matrix[random.rand(*shape) < 0.1] = 0
    return matrix.astype(DTYPES[random.randint(3)])


def ours(storage, matrix, dtype=jnp.float32):
    stored = jax.jit(storage.store)(jnp.asarray(matrix))
    values = jax.jit(lambda s: storage.load(s, matrix.shape, dtype))(stored)
    return {name: np.asarray(array) for name, array in stored.items()}, np.asarray(values)


@pytest.mark.parametrize("seed", [0, 1, 2, 5])
@pytest.mark.parametrize("block", [32, 64, 256])
def test_nf4_and_bitsandbytes(seed, block):
    pytest.importorskip("bitsandbytes")
    matrix = random_matrix(seed, block)
    theirs = nf4(matrix, block=block)
    stored, values = ours(NF4(block=block), matrix, matrix.dtype)
    outputs = matrix.shape[1]
    np.testing.assert_array_equal(stored["codes"], theirs["codes"].reshape(outputs, -1).T)
    np.testing.assert_array_equal(stored["absmax"], theirs["absmax"].reshape(outputs, -1).T)
    np.testing.assert_array_equal(values.astype(np.float32), theirs["values"])


@pytest.mark.parametrize("seed", [0, 1, 2, 5])
@pytest.mark.parametrize("block", [32, 64, 256])
def test_double_quantisation_and_bitsandbytes(seed, block):
    pytest.importorskip("bitsandbytes")
    matrix = random_matrix(seed, block)
    theirs = nf4(matrix, double=True, block=block)
    stored, values = ours(NF4(block=block, double_quant=True), matrix)
    outputs = matrix.shape[1]
    np.testing.assert_array_equal(stored["codes"], theirs["codes"].reshape(outputs, -1).T)
    mean = theirs["nested_offset"]
    np.testing.assert_allclose(stored["nested_offset"], mean, rtol=4 * EPS)
    # A mean that differs by a few units may take a scale over a threshold of its 8 bits.
    same = stored["absmax"] == theirs["absmax"].reshape(outputs, -1).T
    assert (~same).sum() <= 1 + 1e-3 * same.size
    exact = stored["nested_offset"] == mean
    if exact:
        assert same.all()
    same = np.repeat(same, block, axis=0)
    values, expected = (
        np.where(same, each.astype(matrix.dtype).astype(np.float32), 0)
        for each in (values, theirs["values"])
    )
    unit = 0 if exact else max(float(ml_dtypes.finfo(matrix.dtype).eps), 8 * EPS)
    np.testing.assert_allclose(values, expected, rtol=unit, atol=8 * EPS * mean * (not exact))


@pytest.mark.parametrize("seed", [0, 2, 3, 5])
def test_int8_and_bitsandbytes(seed):
    pytest.importorskip("bitsandbytes")
    matrix = random_matrix(seed)
    matrix[0] += matrix[0] == 0  # bitsandbytes divides by the zero of an empty column
    theirs = int8(matrix)
    stored, values = ours(Int8(), matrix)
    np.testing.assert_array_equal(stored["codes"], theirs["codes"].T)
    np.testing.assert_array_equal(stored["absmax"][0], theirs["absmax"])
    np.testing.assert_array_equal(values, theirs["values"])


@pytest.mark.parametrize("seed", [0, 2, 5])
def test_nf4_and_qwix(seed):
    """Equal but where qwix, which divides, sees a number on the other side of a threshold."""
    qwix = pytest.importorskip("qwix")
    matrix = random_matrix(seed).astype(np.float32)
    matrix[::64] += matrix[::64] == 0  # qwix divides by the zero of an empty block
    array = qwix.quantize(
        jnp.asarray(matrix), "nf4", channelwise_axes=(1,), tiled_axes={0: 64},
        calibration_method="absmax",
    )  # fmt: skip
    theirs = np.asarray(qwix.dequantize(array))
    stored, values = ours(NF4(), matrix)
    scaled = matrix / np.repeat(stored["absmax"], 64, axis=0)
    thresholds = (np.array(CODES)[1:] + np.array(CODES)[:-1]) / 2
    clear = np.abs(scaled[..., None] - thresholds).min(-1) > 4 * EPS
    assert clear.mean() > 0.999
    np.testing.assert_array_equal(values[clear], theirs[clear])
