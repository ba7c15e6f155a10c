"""Read pytorch_model.bin safely and without torch: the tensors of a file that torch.save wrote.

The file is a zip archive of a pickle and one entry for each storage. A pickle can call any
function; this reader knows the three that named tensors need, and refuses all others.
"""

import collections
import io
import math
import pickle
import pickletools
import reprlib
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lora_jax.files.archives import open_zip
from lora_jax.messages import first_line, naming

# torch's storage classes: NumPy's type, and its name in safetensors
_STORAGES = {
    "DoubleStorage": (np.float64, "F64"),
    "FloatStorage": (np.float32, "F32"),
    "HalfStorage": (np.float16, "F16"),
    "BFloat16Storage": (ml_dtypes.bfloat16, "BF16"),
    "LongStorage": (np.int64, "I64"),
    "IntStorage": (np.int32, "I32"),
    "ByteStorage": (np.uint8, "U8"),
    "BoolStorage": (np.bool_, "BOOL"),
}
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, pickled


class _Storage(NamedTuple):
    key: str
    kind: str
    numel: int


class _Tensor(NamedTuple):
    """A tensor's place in its storage; offset and strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchFile:
    """The tensors of one file by name: shapes and types are known at once, contents on `read`.

    Raises a one-line ValueError that names the file for anything but a dictionary of tensors
    written by torch.save of version 1.6 or later.

    Args:
      wrapper: the key under which some programs put that dictionary into another one. Without
        such a key, the outer dictionary is the one of tensors.
    """

    def __init__(self, path: Path, wrapper: str | None = None):
        self.path = path
        self._wrapper = wrapper
        if not zipfile.is_zipfile(path):
            raise ValueError(self._not_a_zip())
        with naming(path):
            self._zip = open_zip(path)
        pickles = [n for n in self._zip.namelist() if n == "data.pkl" or n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"{path}: a zip archive, but torch.save did not write it")
        self._root = pickles[0].removesuffix("data.pkl")
        ordered = self._root + "byteorder" in self._zip.namelist()
        if ordered and self._entry("byteorder") != b"little":
            raise ValueError(f"{path}: big-endian numbers are not supported")
        self._tensors = self._unpickle()

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """The dtype of the tensor, by its name in safetensors."""
        return _STORAGES[self._tensors[name].storage.kind][1]

    def read(self, name: str) -> np.ndarray:
        return self._view(name).copy()

    def part(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor; its whole storage is still read."""
        return self._view(name)[index].copy()

    def _view(self, name: str) -> np.ndarray:
        storage, offset, shape, strides = self._tensors[name]
        dtype = np.dtype(_STORAGES[storage.kind][0])
        content = self._entry(f"data/{storage.key}")
        if len(content) != storage.numel * dtype.itemsize:
            raise ValueError(
                f"{self.path}: the storage of tensor {name!r} has {len(content):,} bytes, "
                f"expected {storage.numel * dtype.itemsize:,}"
            )
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if math.prod(shape) and last >= storage.numel:
            raise ValueError(f"{self.path}: tensor {name!r} reaches beyond its storage")
        if math.prod(shape) > storage.numel:  # strides of 0 could make any size from one element
            raise ValueError(f"{self.path}: tensor {name!r} has more elements than its storage")
        flat = np.frombuffer(content, dtype)[offset:]
        steps = [s * dtype.itemsize for s in strides]
        return np.lib.stride_tricks.as_strided(flat, shape, steps)

    def _entry(self, name: str) -> bytes:
        """The content of one entry; compressed ones are refused, as they could be of any size."""
        try:
            info = self._zip.getinfo(self._root + name)
            if info.file_size > self.path.stat().st_size:
                raise EOFError(f"entry {info.filename} has {info.file_size:,} bytes")
            compressed = info.compress_type != zipfile.ZIP_STORED
            content = b"" if compressed else self._zip.read(info)
        except Exception as error:  # a damaged archive fails in any way, in a seek for example
            raise ValueError(f"{self.path}: corrupt or truncated: {first_line(error)}") from None
        if compressed:
            raise ValueError(f"{self.path}: entry {info.filename} is compressed")
        return content

    def _unpickle(self) -> dict[str, _Tensor]:
        try:
            pickled = self._entry("data.pkl")
            _check_memo(pickled)
            content = _Unpickler(io.BytesIO(pickled)).load()
        except pickle.UnpicklingError as error:
            raise ValueError(f"{self.path}: {error}") from None
        except Exception as error:  # an invalid pickle can fail in any way
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{self.path}: the pickle in it is corrupt ({reason})") from None
        if isinstance(content, dict) and isinstance(inner := content.get(self._wrapper), dict):
            if twice := [name for name in inner if name in content]:
                said = f"{reprlib.repr(twice[0])} is in {self._wrapper!r}, and beside it, too"
                raise ValueError(f"{self.path}: {said}")
            content = inner
        if not isinstance(content, dict):
            raise ValueError(f"{self.path}: holds a {type(content).__name__}, not named tensors")
        for name, value in content.items():
            if not isinstance(name, str) or not isinstance(value, _Tensor):
                raise ValueError(f"{self.path}: {reprlib.repr(name)} is not a tensor")
        return dict(content)

    def _not_a_zip(self) -> str:
        with self.path.open("rb") as stream:
            start = stream.read(len(_LEGACY))
        if start == _LEGACY:
            return (
                f"{self.path}: in the format of torch before 1.6, which is not read; "
                "write it again: torch.save(torch.load(file), file)"
            )
        size = self.path.stat().st_size
        return f"{self.path} ({size:,} bytes) is corrupt or truncated: not a zip archive"


class _Unpickler(pickle.Unpickler):
    """Load only dictionaries and descriptions of tensors; UnpicklingError for any other class."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in _STORAGES:
            return name
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}, which no file of named tensors needs: refused"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        tag, kind, key, _, numel = pid
        if tag != "storage" or kind not in _STORAGES or not _sizes([numel]):
            raise pickle.UnpicklingError(f"not a storage: {reprlib.repr(pid)}")
        return _Storage(str(key), kind, numel)


def _check_memo(pickled: bytes) -> None:
    """Raise a ValueError for a pickle whose memo would take more entries than it has bytes.

    The unpickler keeps objects in a list that grows to the largest number given to one of them.
    """
    for opcode, argument, _ in pickletools.genops(pickled):  # also fails for truncated texts
        if "PUT" in opcode.name and not 0 <= int(argument or 0) < len(pickled):
            raise ValueError(f"an object is numbered {argument}")


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    if (
        not isinstance(storage, _Storage)
        or not _sizes([offset, *shape, *strides])
        or len(shape) != len(strides)
    ):
        said = f"{reprlib.repr(shape)} of {reprlib.repr(storage)}"
        raise pickle.UnpicklingError(f"not a tensor: {said}")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _sizes(values: list[Any]) -> bool:
    return all(isinstance(value, int) and value >= 0 for value in values)
