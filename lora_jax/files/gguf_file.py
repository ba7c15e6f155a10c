"""One GGUF file, llama.cpp's format: the model's metadata, and tensors by the file's own names.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The package `gguf` reads it
and dequantises its types of weights.
"""

from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.messages import nearest

SPECIAL_TOKENS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""What the metadata calls each special token of transformers."""
_GIVEN: Any = object()  # stands for "no default"
_ARRAY = 9  # the format's number for metadata of type array
_MOST = 5_000_000
"""The most elements of a list in the metadata. The reader makes an object for each; no vocabulary
and no list of merges has more."""


class GgufError(ValueError):
    """A file that cannot be used; the message begins with its path."""

    def __init__(self, path: Path, problem: str):
        super().__init__(f"{path}: {problem}")


class GgufFile:
    """Metadata by key, and tensors by name: shapes and types are known at once, contents on `read`.

    FileNotFoundError if there is no file; a one-line ValueError for a file that is corrupt,
    truncated, of the other byte order, or one of several parts.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._gguf = library(self.path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file")
        try:
            self._reader: Any = _bounded(self._gguf.GGUFReader)(self.path)
        except Exception as error:  # missing bytes can make any of its lookups fail
            size = self.path.stat().st_size
            reason = (str(error).strip().splitlines() or ["no reason given"])[0]
            raise ValueError(
                f"{self.path} ({size:,} bytes) is corrupt, truncated or not GGUF: "
                f"{type(error).__name__}: {reason}"
            ) from None
        if self._reader.byte_order == "S":
            raise GgufError(self.path, "written in the byte order of another kind of machine")
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._values: dict[str, Any] = {}
        if (parts := self.value("split.count", 1)) not in (0, 1):
            raise GgufError(self.path, f"one of {parts} parts; join them: llama-gguf-split --merge")

    def value(self, key: str, default: Any = _GIVEN) -> Any:
        """The metadata's value of a key: a number, a text, or a list of these.

        ValueError if there is no such key and no default.
        """
        if key not in self._values and (field := self._reader.get_field(key)) is not None:
            self._values[key] = field.contents()
        if key in self._values:
            return self._values[key]
        if default is _GIVEN:
            near = nearest(key, self._reader.fields)
            raise GgufError(self.path, f"the metadata has no {key!r}; nearest: {near}")
        return default

    def number(self, key: str, default: Any = _GIVEN) -> Any:
        """As `value`; a float32 becomes the shortest decimal with the same float32 value."""
        value = self.value(key, default)
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def names(self) -> list[str]:
        """The names of all tensors, as they are stored."""
        return list(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape in NumPy's order; the file stores the last axis first."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def check_type(self, name: str) -> None:
        """Raise a ValueError for a tensor of a type that `read` cannot dequantise."""
        quantised = self._tensors[name].tensor_type
        block = np.zeros((1, self._gguf.GGML_QUANT_SIZES[quantised][1]), np.uint8)
        try:
            self._gguf.quants.dequantize(block, quantised)
        except NotImplementedError:
            raise GgufError(
                self.path, f"tensor {name!r} is {quantised.name}, which cannot be dequantised"
            ) from None

    def read(self, name: str, rows: Any = slice(None)) -> np.ndarray:
        """The tensor, dequantised to float32; ValueError if any value is not finite.

        `rows`, a slice or numbers, selects along the first axis; other rows are not dequantised.
        Vectors are read whole.
        """
        stored = self._tensors[name]
        data = stored.data[rows] if len(stored.shape) > 1 else stored.data
        tensor = self._gguf.quants.dequantize(data, stored.tensor_type)
        if not np.isfinite(tensor).all():
            raise GgufError(self.path, f"tensor {name!r} holds NaN or an infinity")
        return tensor


def _bounded(reader: Any) -> Any:
    """The package's reader, with checks of the lengths that a file declares.

    Without them it would read beyond the end of the file and keep an empty element for each one
    declared, until memory runs out.
    """

    class Reader(reader):
        @property
        def data(self) -> np.ndarray:
            return self._data

        @data.setter
        def data(self, mapped: np.ndarray) -> None:
            # With a memmap, each of 10^5 small views would take twice as long.
            self._data = np.asarray(mapped)

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            end = int(offset) + np.dtype(dtype).itemsize * int(count)
            if end > len(self.data):
                raise ValueError(f"it ends at byte {len(self.data):,}, and a value at byte {end:,}")
            return super()._get(offset, dtype, count, override_order)

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if int(raw_type) == _ARRAY:
                count = int(self._get(orig_offs + 4, np.uint64)[0])
                if count > min(_MOST, len(self.data)):
                    raise ValueError(f"a list of {count:,} elements")
            return super()._get_field_parts(orig_offs, raw_type)

    return Reader


def library(path: Path) -> Any:
    """The package `gguf`; a one-line ValueError on the file that needs it, if it is not there."""
    try:
        import gguf
    except ImportError:
        raise GgufError(
            path,
            "GGUF files need a package that is not installed; "
            'run: pip install "lora-jax[decoders]"',
        ) from None
    return gguf
