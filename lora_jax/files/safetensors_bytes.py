"""The tensors of a safetensors file whose bytes are read once, for files such as adapters.

`safetensors.safe_open` maps a file into memory instead: where the file is cut short or written
over while it is read, the process dies of SIGBUS, or sees half of each version.
"""

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, deserialize

from lora_jax.files import json_text
from lora_jax.messages import said

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


class SafetensorsBytes:
    """The tensors of one file by name, as the file is now; what happens to it later is not seen.

    Arrays share the bytes that were read, and cannot be written to.

    Raises:
      ValueError: the file is not a safetensors file, has more or fewer bytes than its header says,
        or changes while it is read. The message is one line that begins with the path.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            try:
                length = int.from_bytes(file.read(8), "little")
                if length > min(size - 8, _LONGEST_HEADER):
                    raise ValueError(f"its header would have {length:,} bytes")
                # Safetensors takes the last of two tensors of one name, and says no notes.
                header = json_text.loads(file.read(length), "its header")
                file.seek(0)
                content = file.read()
                if len(content) != size:
                    raise ValueError("it changes while it is read")
                found = dict(deserialize(content))
            except (SafetensorError, ValueError) as error:
                raise ValueError(
                    f"{self.path} ({size:,} bytes) is corrupt or truncated: {said(error)[:1000]}"
                ) from None
        self._metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        order = sorted(header, key=lambda name: header[name]["data_offsets"])
        self._tensors = {name: found[name] for name in order}

    def metadata(self) -> dict[str, str]:
        """What its writer has noted in the header."""
        return self._metadata

    def names(self) -> list[str]:
        """The names of all tensors, in the order in which they lie in the file."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name]["shape"])

    def dtype(self, name: str) -> str:
        return self._tensors[name]["dtype"]

    def read(self, name: str) -> np.ndarray:
        """A tensor; ValueError if NumPy has no such dtype."""
        dtype = self.dtype(name)
        if dtype not in _DTYPES:
            raise ValueError(f"{self.path}: tensor {name!r} is {dtype}, which NumPy has not")
        array = np.ndarray(self.shape(name), _DTYPES[dtype], self._tensors[name]["data"])
        array.flags.writeable = False
        return array
