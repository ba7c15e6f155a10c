"""The tensors of a safetensors file whose bytes are read once, for files such as adapters.

`safetensors.safe_open` maps a file into memory instead: where the file is cut short or written
over while it is read, the process dies of SIGBUS, or sees half of each version.
"""

import math
import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from lora_jax.files import json_text

_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "C64": np.complex64,
}
_LONGEST_HEADER = 100_000_000  # bytes; that of safetensors
_METADATA = "__metadata__"


class _Tensor(NamedTuple):
    """A tensor's dtype, as safetensors calls it, its shape and its place, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsBytes:
    """The tensors of one file by name, as the file is now; what happens to it later is not seen.

    Arrays share the bytes that were read, and cannot be written to.

    Raises:
      ValueError: the file is no safetensors file, has more or fewer bytes than its header says, or
        changes while it is read. The message is one line that begins with the path.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            try:
                header = json_text.loads(_header(file, size), "its header")
                self._metadata, self._tensors = _described(header)
                self._data = _content(file, size, self._tensors)
            except ValueError as error:
                raise ValueError(
                    f"{self.path} ({size:,} bytes) is corrupt or truncated: {error}"
                ) from None

    def metadata(self) -> dict[str, str]:
        """What its writer has noted in the header."""
        return self._metadata

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        return self._tensors[name].dtype

    def read(self, name: str) -> np.ndarray:
        """A tensor; ValueError if NumPy has no such dtype."""
        dtype, shape, begin, _ = self._tensors[name]
        if dtype not in _DTYPES:
            raise ValueError(f"{self.path}: tensor {name!r} is {dtype}, which NumPy has not")
        view = np.ndarray(shape, _DTYPES[dtype], self._data, begin)
        return np.require(view, requirements="A")  # a header of any length may come before it


def _header(file: BinaryIO, size: int) -> bytes:
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, _LONGEST_HEADER):
        raise ValueError(f"its header would have {length:,} bytes")
    return file.read(length)


def _described(header: Any) -> tuple[dict[str, str], dict[str, _Tensor]]:
    """The notes of a header, and its tensors in the order of their places, which leave no gap."""
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    noted = header.pop(_METADATA, None) or {}
    if not isinstance(noted, dict) or not all(isinstance(x, str) for x in noted.values()):
        raise ValueError(f"{_METADATA} in its header must be texts by name")
    found = sorted(((n, _tensor(n, x)) for n, x in header.items()), key=lambda each: each[1][2:])
    reached = 0
    for name, each in found:
        if each.begin != reached:
            raise ValueError(f"tensor {name!r} begins at {each.begin:,}, expected {reached:,}")
        reached = each.end
    return noted, dict(found)


def _tensor(name: str, entry: Any) -> _Tensor:
    try:
        dtype, shape, (begin, end) = (entry[key] for key in ("dtype", "shape", "data_offsets"))
        shape = tuple(shape)
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"its header does not describe tensor {name!r}") from None
    numbers = (*shape, begin, end)
    if not isinstance(dtype, str) or any(type(x) is not int or x < 0 for x in numbers):
        raise ValueError(f"its header does not describe tensor {name!r}")
    if dtype in _DTYPES:
        size = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
        if end - begin != size:
            raise ValueError(f"tensor {name!r} has {end - begin:,} bytes, expected {size:,}")
    return _Tensor(dtype, shape, begin, end)


def _content(file: BinaryIO, size: int, tensors: dict[str, _Tensor]) -> bytes:
    """The bytes after the header. Nothing is read where their number is not what it says."""
    expected, there = max((x.end for x in tensors.values()), default=0), size - file.tell()
    if there != expected:
        raise ValueError(f"{there:,} bytes follow its header, which describes {expected:,}")
    data = file.read(expected)
    if len(data) != expected or file.read(1):
        raise ValueError("it changes while it is read")
    return data
