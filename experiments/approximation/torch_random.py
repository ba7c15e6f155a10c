"""Random numbers as PyTorch draws them on a CPU, from NumPy's generator of the same algorithm.

A paper's seeds give the same weights and inputs here without PyTorch, to the rounding of float32.
"""

import math

import numpy as np

GROUP = 16
"""PyTorch makes normal numbers in groups of 16: the cosines of eight pairs, then their sines."""


class TorchRandom:
    """PyTorch's generator for the CPU (mt19937), as `torch.manual_seed(seed)` starts it."""

    def __init__(self, seed: int):
        self._words = np.random.RandomState(seed)
        self._spare: float | None = None

    def uniform(self, shape: tuple[int, ...], bound: float = 1.0) -> np.ndarray:
        """float32 numbers in [-bound, bound), as `nn.init.uniform_(x, -bound, bound)`."""
        drawn = self._fractions(math.prod(shape)) * np.float32(2 * bound) - np.float32(bound)
        return drawn.reshape(shape)

    def normal(self, shape: tuple[int, ...], std: float = 1.0) -> np.ndarray:
        """float32 numbers of mean zero, as `nn.init.normal_(x, std=std)` or `torch.randn`."""
        size = math.prod(shape)
        if size < GROUP:
            drawn = np.array([self._single() for _ in range(size)], np.float32)
        else:
            drawn = self._fractions(size)
            whole = size - size % GROUP
            drawn[:whole] = _normal(drawn[:whole])
            if whole < size:  # the last 16 are drawn again, over the end of the group before
                drawn[-GROUP:] = _normal(self._fractions(GROUP))
        return (drawn * np.float32(std)).reshape(shape)

    def _fractions(self, size: int) -> np.ndarray:
        """float32 numbers in [0, 1), of the low 24 bits of a word each."""
        words = np.frombuffer(self._words.bytes(4 * size), "<u4")
        return (words & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)

    def _single(self) -> float:
        """One normal number in double precision; every second one was drawn with the one before."""
        if self._spare is not None:
            spare, self._spare = self._spare, None
            return spare
        words = np.frombuffer(self._words.bytes(16), "<u4").astype(np.uint64)
        pair = ((words[::2] << np.uint64(32)) | words[1::2]) & np.uint64(2**53 - 1)
        angle, below = 2 * math.pi * float(pair[0]) * 2**-53, float(pair[1]) * 2**-53
        radius = math.sqrt(-2 * math.log1p(-below))
        self._spare = radius * math.sin(angle)
        return radius * math.cos(angle)


def _normal(fractions: np.ndarray) -> np.ndarray:
    """Box and Muller's transform of groups of 16 numbers in [0, 1)."""
    pairs = fractions.reshape(-1, 2, GROUP // 2)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - pairs[:, 0]))
    angle = np.float32(2 * math.pi) * pairs[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)
