"""A folder's weights by tensor name, from one file or several with an index.

Safetensors are read; if there are none, files of torch.save are (torch_bin.py). A GGUF file can
take the place of a folder: it holds all that a folder does, and gguf_file.py reads it.
"""

import hashlib
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  it adds bfloat16 to NumPy, which safetensors needs
import numpy as np
from safetensors import SafetensorError, safe_open

from lora_jax.files import json_text
from lora_jax.files.published_paths import inside
from lora_jax.messages import naming, require_known
from lora_jax.models.parts.family import Index
from lora_jax.models.published.torch_bin import TorchFile

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_SINGLE, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_MOST_JSON = 100_000_000  # bytes; the index of the largest models has a few million
_FLOATS = ("F64", "F32", "F16", "BF16")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; FileNotFoundError or ValueError names the path."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if (size := path.stat().st_size) > _MOST_JSON:
        raise ValueError(f"{path}: {size:,} bytes of JSON; at most {_MOST_JSON:,} are read")
    return json_text.read_object(path)


def find_gguf(path: str | Path) -> Path | None:
    """The GGUF file that a path stands for; None if it is a folder of other files.

    The path ends in .gguf, or is a folder with one such file and no config.json.
    FileNotFoundError if the named file does not exist; ValueError if a folder has several.
    """
    path = Path(path)
    if path.suffix == ".gguf" and not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        return path
    if (path / "config.json").is_file():
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{path}: several GGUF files; give the path of one: {names}")
    return files[0] if files else None


def weight_files(folder: str | Path) -> list[Path]:
    """The files with the weights, sorted; FileNotFoundError if there are none or one is missing."""
    if (gguf := find_gguf(folder)) is not None:
        return [gguf]
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    for single, index in ((SINGLE, INDEX), (TORCH_SINGLE, TORCH_INDEX)):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _shards(folder / index)
    raise FileNotFoundError(
        f"{folder}: neither {SINGLE} nor {TORCH_SINGLE}, nor an index of either"
    )


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index}: no weight_map")
    files = sorted({inside(index, name) for name in names.values()})
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file, but {index.name} names it")
    return files


def weights_digest(folder: str | Path) -> str:
    """The sha256 of the weight file in hexadecimal; several files are hashed as one, in order."""
    total = hashlib.sha256()
    for file in weight_files(folder):
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                total.update(chunk)
    return total.hexdigest()


class SafetensorsFile:
    """The tensors of one file by name: shapes and types are known at once, contents on `read`."""

    def __init__(self, path: Path):
        self.path = path
        wrong = f"{path} ({path.stat().st_size:,} bytes) is corrupt or truncated"
        with naming(wrong, SafetensorError):
            self._file: Any = safe_open(path, framework="numpy")
        _refuse_doubled(path)

    def metadata(self) -> dict[str, str]:
        """What its writer has noted in the header."""
        return self._file.metadata() or {}

    def names(self) -> list[str]:
        return list(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        return self._file.get_slice(name).get_dtype()

    def read(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)

    def part(self, name: str, index: Index) -> np.ndarray:
        return self._file.get_slice(name)[index]


def _refuse_doubled(path: Path) -> None:
    """Raise a ValueError if a header has a name twice: safetensors takes the last of them."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        json_text.loads(file.read(size), f"{path}: its header")


class Weights:
    """The tensors of a folder: names and shapes are known at once, contents on `read`.

    `prefix` is the prefix of the model's names in a checkpoint with a head, such as `bert.`. A
    checkpoint of the model alone omits it, so names are looked up without it there.
    """

    def __init__(self, folder: str | Path, prefix: str):
        self.folder = Path(folder)
        self._source: dict[str, tuple[SafetensorsFile | TorchFile, str]] = {}
        for path in weight_files(folder):
            file = TorchFile(path) if path.suffix == ".bin" else SafetensorsFile(path)
            for name in file.names():
                # Checkpoints from TensorFlow, such as bert-base-uncased, use gamma and beta.
                key = name.replace("LayerNorm.gamma", "LayerNorm.weight")
                key = key.replace("LayerNorm.beta", "LayerNorm.bias")
                if key in self._source:
                    other = self._source[key][0].path
                    raise ValueError(
                        f"{path}: tensor {key!r} is there twice: it is also in {other}"
                    )
                self._source[key] = (file, name)
        self._prefix = prefix
        self._prefixed = any(name.startswith(prefix) for name in self._source)

    def _key(self, name: str) -> str:
        return name if self._prefixed else name.removeprefix(self._prefix)

    def names(self) -> list[str]:
        """The names of all tensors, as they are stored."""
        return list(self._source)

    def __contains__(self, name: str) -> bool:
        return self._key(name) in self._source

    def shape(self, name: str) -> tuple[int, ...]:
        file, stored = self._source[self._key(name)]
        return file.shape(stored)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise a ValueError unless a floating-point tensor has this name and shape."""
        key = self._key(name)
        require_known(key, self._source, f"{self.folder}: the weights have no tensor {key!r}")
        if self.shape(name) != shape:
            raise ValueError(
                f"{self.folder}: tensor {key!r} has shape {self.shape(name)}, "
                f"config.json asks for {shape}"
            )
        file, stored = self._source[key]
        dtype = file.dtype(stored)
        if dtype not in _FLOATS:
            raise ValueError(f"{self.folder}: tensor {key!r} is {dtype}, expected one of {_FLOATS}")

    def read(self, name: str) -> np.ndarray:
        """The tensor; ValueError if any value is not finite."""
        file, stored = self._source[self._key(name)]
        return _finite(file.read(stored), file.path, stored)

    def part(self, name: str, index: Index) -> np.ndarray:
        """A part of the tensor; ValueError as in `read`.

        From safetensors, only this part is read; from a file of torch.save, the whole tensor's
        storage each time.
        """
        file, stored = self._source[self._key(name)]
        return _finite(file.part(stored, index), file.path, stored)


def _finite(tensor: np.ndarray, path: Path, name: str) -> np.ndarray:
    if not np.isfinite(tensor).all():
        raise ValueError(f"{path}: tensor {name!r} holds NaN or an infinity")
    return tensor
