"""The checksum against one by hand in whole numbers, element by element and on meshes."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lora_jax.files.arrays import checksum, hexadecimal, holds

UNSIGNED = [f"uint{bits}" for bits in (4, 8, 16, 32, 64)]
SIGNED = [f"int{bits}" for bits in (4, 8, 16, 32, 64)]
FLOATS = ["float8_e4m3fn", "bfloat16", "float16", "float32", "float64", "complex64", "complex128"]
SHAPES = [(), (0,), (3, 0), (7,), (3, 1, 5)]
WORD = 1 << 32


def mix(word):
    """MurmurHash3's fmix32, as published."""
    word ^= word >> 16
    word = word * 0x85EBCA6B % WORD
    word ^= word >> 13
    word = word * 0xC2B2AE35 % WORD
    return word ^ word >> 16


def by_hand(array):
    """The two sums, by whole numbers of Python."""
    if np.iscomplexobj(array):
        array = np.stack([array.real, array.imag], -1)
    array = array.reshape(array.shape or (1,))
    sums = [0, 0]
    for place in itertools.product(*map(range, array.shape)):
        data = int.from_bytes(array[place].tobytes(), "little")
        if array.dtype in ("int4", "uint4"):
            data &= 15
        one, two = (
            seed
            + sum(
                index * (mix((seed + axis) % WORD) | 1) for axis, index in enumerate(place, start=1)
            )
            for seed in (0x6A09E667, 0xBB67AE85)
        )
        first = mix((data % WORD + one) % WORD)
        second = mix((first + two + data // WORD) % WORD)
        sums = [(sums[0] + mix(first ^ second)) % WORD, (sums[1] + second) % WORD]
    return "".join(f"{each:08x}" for each in sums)


def some(dtype, shape, seed=0):
    """Elements of any bits that the type has."""
    dtype, rng = jnp.dtype(dtype), np.random.default_rng(seed)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype in ("int4", "uint4"):
        return rng.integers(0, 8, shape).astype(dtype)
    data = rng.bytes(int(np.prod(shape)) * dtype.itemsize)
    return np.frombuffer(data, np.uint8).copy().view(dtype).reshape(shape)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", ["bool", *UNSIGNED, *SIGNED, *FLOATS])
def test_of_every_type_and_shape_numpy_jax_and_whole_numbers_agree(dtype):
    arrays = [some(dtype, shape) for shape in SHAPES]
    of_jax = jax.jit(lambda arrays: list(map(checksum, arrays)))(arrays)
    for shape, array, found in zip(SHAPES, arrays, of_jax, strict=True):
        expected = by_hand(array)
        assert hexadecimal(checksum(array)) == expected, shape
        assert hexadecimal(found) == expected, shape
        assert holds(checksum(array), expected) and not holds(checksum(array), "0" * 15 + "1")
    with pytest.raises(ValueError, match="no checksum of <U4: expected numbers of at most 64 bits"):
        checksum(np.array("text"))


@pytest.mark.parametrize("axes", [(), ("x",), (None, "y"), ("y", "x"), (("x", "y"),)])
def test_no_sharding_changes_it_and_only_sums_travel(axes):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    array = some("float32", (64, 32))
    divided = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))
    assert hexadecimal(checksum(divided)) == hexadecimal(checksum(array))
    text = jax.jit(checksum).lower(divided).compile().as_text()
    moved = re.findall(r"= u32\[([\d,]*)\]\S* (?:all-|collective-)[a-z]+\(", text)
    assert len(moved) == len(re.findall(r"(?:all-|collective-)[a-z]+\(", text))
    assert all(math.prod(map(int, each.split(","))) <= 8 for each in moved if each), moved
    assert bool(moved) == bool(axes)


def test_it_takes_no_memory_beside_the_array():
    array = jax.ShapeDtypeStruct((512, 1024), jnp.bfloat16)
    compiled = jax.jit(checksum).lower(array).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 10_000
