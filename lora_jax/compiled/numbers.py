"""Arithmetic by NumPy that differs by the kind of numbers: whole, real and complex ones.

Rules of `lora_jax.compiled.numpy_ops`: `(params, *operands) -> result`, or NotImplemented.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


def divide(params: Mapping[str, Any], x: np.ndarray, y: np.ndarray) -> Any:
    """Division; of integers, towards zero."""
    if x.dtype.kind in "fc":
        return np.divide(x, y)
    return NotImplemented if (y == 0).any() else (x - np.fmod(x, y)) // y


def remainder(params: Mapping[str, Any], x: np.ndarray, y: np.ndarray) -> Any:
    """What remains of a division towards zero: it has the sign of the dividend."""
    return NotImplemented if x.dtype.kind != "f" and (y == 0).any() else np.fmod(x, y)


def sign(params: Mapping[str, Any], x: np.ndarray) -> Any:
    """Signs of floats and integers."""
    return np.sign(x) if x.dtype.kind in "fiu" else NotImplemented


def joined(params: Mapping[str, Any], real: np.ndarray, imaginary: np.ndarray) -> Any:
    """Complex numbers of two parts."""
    result = np.empty(real.shape, np.result_type(real, np.complex64))
    result.real, result.imag = real, imaginary  # in a sum, an infinite one would give NaN
    return result


def fourier(params: Mapping[str, Any], x: np.ndarray) -> Any:
    """A Fourier transform along the last axes; along several, only the complex ones are here."""
    kind, lengths = params["fft_type"].name, params["fft_lengths"]
    axes = tuple(range(-len(lengths), 0))
    if kind in ("FFT", "IFFT"):
        return (np.fft.fftn if kind == "FFT" else np.fft.ifftn)(x, lengths, axes)
    one = np.fft.rfft if kind == "RFFT" else np.fft.irfft
    return NotImplemented if len(lengths) > 1 else one(x, lengths[0])
