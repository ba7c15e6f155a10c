"""Writes tests/fixtures/quantize_*: how bitsandbytes stores matrices, computed on the CPU.

Needs bitsandbytes:

    PYTHONPATH=tests python -m make_fixtures.quantize

`quantize_nf4.npz`, `quantize_nf4_double.npz` and `quantize_int8.npz` hold, for each case:

    <case>/codes      packed as bitsandbytes does, flat over torch's (out, in); int8 as (out, in)
    <case>/absmax     the scales, flat likewise; 8-bit codes of them with double quantisation
    <case>/nested_absmax, <case>/nested_offset     what those 8-bit codes need
    <case>/scales     the scales again, dequantised
    <case>/values     the matrix dequantised, (in, out), as float32

The upper half of the file needs NumPy only, and the tests use it: the matrices are made anew.
"""

import zlib
from pathlib import Path

import ml_dtypes
import numpy as np

FIXTURES = Path(__file__).parents[2] / "fixtures"

NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip
"""Dettmers et al. 2023, appendix E."""


def random_of(name):
    return np.random.RandomState(zlib.crc32(name.encode()))


def normal(random, shape):
    return 0.02 * random.randn(*shape)


def heavy(random, shape):
    """Tails that leave most of a block near zero, and columns of different size."""
    return random.standard_t(2, shape) * 10.0 ** random.randint(-5, 3, shape[1])


def zeros(random, shape):
    """Blocks, columns and single numbers that are zero, of either sign."""
    matrix = random.randn(*shape)
    matrix[:, ::5] = 0.0
    matrix[:64, 1::5] = -0.0
    matrix[random.rand(*shape) < 0.2] = 0.0
    return matrix


def thresholds(random, shape):
    """Blocks whose greatest number is a power of two, the others where a code gives way, or beside.

    Also the codes themselves. All are exact in float32.
    """
    codes = np.float32(NF4)
    ties = (codes[1:] + codes[:-1]) / 2
    beside = [np.nextafter(ties, np.float32(end)) for end in (-2, 2)]
    pool = np.concatenate([ties, *beside, codes])
    matrix = random.choice(pool, shape)
    matrix[::32] = random.choice([-1.0, 1.0], matrix[::32].shape)
    return matrix * 2.0 ** random.randint(-10, 10, shape[1])


def equal(random, shape):
    """All scales the same: with double quantisation nothing remains but the mean."""
    return np.sign(random.randn(*shape))


def whole(random, shape):
    """Small integers: many ties on the way to int8."""
    matrix = random.randint(-254, 255, shape)
    matrix[0] = random.choice([-254, 254], shape[1])
    return matrix / 2


# name -> (how it is made, its shape, its dtype)
CASES = {
    "normal": (normal, (128, 12), "float32"),
    "normal, one column": (normal, (64, 1), "float32"),
    "normal, one block": (normal, (64, 20), "float32"),
    "normal, bfloat16": (normal, (192, 7), "bfloat16"),
    "normal, float16": (normal, (128, 9), "float16"),
    "heavy": (heavy, (128, 17), "float32"),
    "heavy, bfloat16": (heavy, (64, 30), "bfloat16"),
    "zeros": (zeros, (128, 15), "float32"),
    "all zeros": (lambda random, shape: np.zeros(shape), (64, 4), "float32"),
    "thresholds": (thresholds, (320, 8), "float32"),
    "equal": (equal, (128, 12), "float32"),
    "whole": (whole, (64, 20), "float32"),
    "many blocks": (normal, (640, 26), "float32"),
    "many columns": (heavy, (64, 257), "float32"),
}

# Of a column of zeros bitsandbytes makes what the processor makes of 0 * infinity.
INT8_CASES = [name for name in CASES if "zeros" not in name and "many" not in name]


def matrix_of(name):
    """The (in, out) matrix of a case, in its dtype."""
    make, shape, dtype = CASES[name]
    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return make(random_of(name), shape).astype(dtype)


def to_torch(matrix):
    """Torch's (out, in) weight of an (in, out) matrix, of the same dtype."""
    import torch

    weight = torch.tensor(np.ascontiguousarray(matrix.T).astype(np.float32))
    return weight.to(getattr(torch, str(matrix.dtype)))


def nf4(matrix, double=False, block=64):
    """What bitsandbytes makes of a matrix in 4 bits."""
    import bitsandbytes.functional as bnb

    weight = to_torch(matrix)
    codes, state = bnb.quantize_4bit(
        weight, blocksize=block, quant_type="nf4", compress_statistics=double
    )
    stored = {"codes": codes.flatten(), "absmax": state.absmax, "scales": state.absmax}
    if double:
        scales = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
        nested = {"nested_absmax": state.state2.absmax, "nested_offset": state.offset}
        stored |= {"scales": scales, **nested}
    values = bnb.dequantize_4bit(codes, state).float().T
    return {name: each.numpy() for name, each in {**stored, "values": values}.items()}


def int8(matrix):
    """What bitsandbytes makes of a matrix in 8 bits."""
    import bitsandbytes.functional as bnb

    codes, absmax, _ = bnb.int8_vectorwise_quant(to_torch(matrix))
    values = bnb.int8_vectorwise_dequant(codes, absmax).T
    stored = {"codes": codes, "absmax": absmax, "scales": absmax, "values": values}
    return {name: each.numpy() for name, each in stored.items()}


def main():
    kinds = {"nf4": nf4, "nf4_double": lambda matrix: nf4(matrix, double=True), "int8": int8}
    for kind, store in kinds.items():
        arrays = {}
        for name in INT8_CASES if kind == "int8" else CASES:
            stored = store(matrix_of(name))
            arrays |= {f"{name}/{key}": np.asarray(a, order="C") for key, a in stored.items()}
        np.savez_compressed(FIXTURES / f"quantize_{kind}.npz", **arrays)


if __name__ == "__main__":
    main()
