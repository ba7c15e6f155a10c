"""The 4-bit codes of NF4, and the 8-bit codes of its scales, as functions of each element."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lora_jax.base import explicit_sharding

VALUES = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
"""The 16 values of the 4-bit NormalFloat: Dettmers et al. 2023, appendix E (and equation 4)."""


@jax.jit
def encode(x: Array) -> Array:
    """The code (uint8, 0 to 15) of the value nearest to each number in [-1, 1].

    Of two values that are equally near, the lower one is taken, as in bitsandbytes.
    """
    code = jnp.zeros(x.shape, jnp.uint8)
    for threshold in (VALUES[1:] + VALUES[:-1]) / 2:
        code += (x > threshold).astype(jnp.uint8)
    return code


@jax.jit
def decode(code: Array) -> Array:
    """The float32 value of each code: a tree of selects on its bits, instead of a gather."""
    bits = [(code >> bit) & 1 == 1 for bit in range(4)]
    # Make each value depend on the code: otherwise a scan would hoist it out as a whole array.
    zero = (code & 0).astype(jnp.float32)

    def choose(values: np.ndarray, bits: list[Array]) -> Array:
        if not bits:
            return zero + values[0]
        half = len(values) // 2
        *lower, highest = bits
        return jnp.where(highest, choose(values[half:], lower), choose(values[:half], lower))

    return choose(VALUES, bits)


def pack(code: Array) -> Array:
    """Pack two rows of codes in one row of bytes: (2n, out) to (n, out), the first in high bits."""
    pairs = code.reshape(-1, 2, code.shape[1])
    return pairs[:, 0] << 4 | pairs[:, 1]


def unpack(byte: Array) -> Array:
    """Unpack the codes in each row of bytes: (n, out) to (2n, out)."""
    shifts = jnp.array([[[4], [0]]], jnp.uint8)
    return (byte[:, None] >> shifts & 15).reshape(-1, byte.shape[1])


# -- scales ----------------------------------------------------------------------------------------


def _dynamic_map() -> np.ndarray:
    """The 256 values of bitsandbytes' signed dynamic data type, in order, to the bit.

    Seven decades, 10^-6 to 1, the i-th divided evenly in 2^i. Dettmers 2016, arXiv 1511.04561,
    section 2; `create_dynamic_map` of bitsandbytes.
    """
    positive = []
    for decade in range(7):
        count = 2**decade
        # As torch.linspace: from the nearer end, and rounded once.
        step = np.float64(np.float32(0.9) / np.float32(count))
        steps = np.arange(count + 1) * step
        low, high = np.float32(np.float32(0.1) + steps), np.float32(1 - steps[::-1])
        edges = np.where(np.arange(count + 1) <= count / 2 - 0.5, low, high)
        positive.append(np.float32(10.0 ** (decade - 6)) * ((edges[1:] + edges[:-1]) / 2))
    magnitudes = np.concatenate(positive)
    return np.concatenate([-magnitudes[::-1], [0.0], magnitudes, [1.0]]).astype(np.float32)


def _dynamic_thresholds(values: np.ndarray) -> np.ndarray:
    """Where each code but the first begins, on a scale 0 to 2^16 - 1 that stands for [-1, 1].

    bitsandbytes' CPU kernel rounds to one of these 2^16 steps before it takes the nearest value.
    """
    steps = np.linspace(-1, 1, 2**16, dtype=np.float32)
    nearest = np.searchsorted((values[1:] + values[:-1]) / 2, steps)
    first = np.searchsorted(nearest, np.arange(1, len(values)))
    return (first - 0.5).astype(np.float32)


DYNAMIC = _dynamic_map()
DYNAMIC_THRESHOLDS = _dynamic_thresholds(DYNAMIC)


@jax.jit
def encode_dynamic(x: Array) -> Array:
    """The uint8 code of the 8-bit dynamic value that stands for each number in [-1, 1]."""
    position = (jnp.clip(x, -1, 1) + 1) * (2**15 - 0.5)
    thresholds = jnp.asarray(DYNAMIC_THRESHOLDS)

    def count(index: Array, code: Array) -> Array:
        return code + (position >= thresholds[index]).astype(jnp.uint8)

    return lax.fori_loop(0, len(DYNAMIC_THRESHOLDS), count, jnp.zeros_like(x, jnp.uint8))


@jax.jit
def decode_dynamic(code: Array, scale: Array, offset: Array) -> Array:
    """`scale * value + offset`, rounded twice, for the 8-bit dynamic value of each code."""
    # A gather is cheap here: it takes 1/64 of the numbers, and XLA does not repeat it for every
    # weight of a block.
    magnitude = jnp.asarray(np.abs(DYNAMIC)).at[code.astype(jnp.int32)]
    product = scale * magnitude.get(mode="clip", out_sharding=explicit_sharding(code))
    # The sign comes last: otherwise XLA would fuse the product and the sum, and round once.
    return jnp.where(code < 127, -product, product) + offset
