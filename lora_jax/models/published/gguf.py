"""GGUF files: a decoder's config, and its tensors by transformers' names and in its layout.

For the architecture "llama", llama.cpp rotates neighbouring features of a head (as in the rotary
paper), but transformers rotates features half a head apart. The rows of queries and keys are
therefore stored in another order there. Other architectures are rotated as in transformers. GPT-2's
matrices are stored as (out, in).

Keys of metadata are documented in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; for
their values, see the conversion in https://github.com/ggml-org/llama.cpp (convert_hf_to_gguf.py).
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.files.gguf_file import GgufError, GgufFile
from lora_jax.messages import nearest, require_known
from lora_jax.models import families
from lora_jax.models.parts.config_checks import shown
from lora_jax.models.parts.family import Family, Gguf, Index


def gguf_config(file: GgufFile) -> Any:
    """The checked config of a file, equal to the one from the model's config.json.

    Numbers stored as float32 become the shortest decimals with the same float32 value. Raises a
    GgufError for another architecture, an unsupported feature, and a number that is missing or out
    of range.
    """
    kind = file.value("general.architecture")
    # llama.cpp calls Llama, Mistral and others that compute in the same way "llama".
    windowed = kind == "llama" and file.value("llama.attention.sliding_window", None)
    try:
        family = families.find("mistral" if windowed else kind, "decoder")
    except ValueError:
        family = None
    if family is None or family.gguf is None:
        stated = [each.gguf for each in families.all_families().values()]
        known = sorted({each.architecture for each in stated if each is not None})
        raise GgufError(
            file.path,
            f"architecture {shown(kind)} is not supported; nearest: "
            f"{nearest(str(kind), known)}; supported: {', '.join(known)}",
        )
    reader: Any = family.config
    try:
        config = reader.from_gguf(file)
        config.check_known_tokens()
        return config
    except GgufError:  # it names the file already
        raise
    except ValueError as error:
        raise GgufError(file.path, str(error)) from None


class GgufWeights:
    """A `Source` of tensors (see `load`), with the config of the same file."""

    def __init__(self, path: str | Path):
        self._file = GgufFile(path)
        self.folder = self._file.path
        self.config = gguf_config(self._file)
        self._family = families.family_of(self.config)
        self._stored = {_translated(name, self._family): name for name in self._file.names()}

    def names(self) -> list[str]:
        """The names of all tensors in transformers; parts of a name without one there are kept."""
        return list(self._stored)

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise a ValueError unless a tensor has this name and shape and can be dequantised."""
        require_known(name, self._stored, f"{self.folder}: the weights have no tensor {name!r}")
        stored = self._stored[name]
        found = self._file.shape(stored)
        found = found[::-1] if self._is_transposed(name, found) else found
        if found != shape:
            raise ValueError(
                f"{self.folder}: tensor {name!r} ({stored!r}) has shape {found}, "
                f"the metadata asks for {shape}"
            )
        self._file.check_type(stored)

    def read(self, name: str) -> np.ndarray:
        """The tensor, dequantised to float32; ValueError if any value is not finite."""
        tensor = self._file.read(self._stored[name])
        if self._is_transposed(name, tensor.shape):
            return tensor.T
        heads = turned_heads(name, self.config)
        return tensor if heads is None else half_turned(tensor, heads)

    def part(self, name: str, index: Index) -> np.ndarray:
        """A part of the tensor; only the rows of the file that hold it are dequantised."""
        stored = self._stored[name]
        shape = self._file.shape(stored)
        if len(shape) == 1:
            return self.read(name)[index]
        if self._is_transposed(name, shape):
            return self._file.read(stored, index[1])[:, index[0]].T
        heads = turned_heads(name, self.config)
        rows: Any = index[0]
        if heads is not None:
            rows = half_turned(np.arange(shape[0]), heads)[rows]
        return self._file.read(stored, rows)[:, index[1]]

    def _is_transposed(self, name: str, shape: tuple[int, ...]) -> bool:
        inside = name.startswith(self._family.layers) and len(shape) == 2
        return inside and self._family.stored_in_out


def half_turned(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows, from rotating neighbouring features to rotating features half a head apart.

    The shape (heads x head_dim, ...) stays. The inverse of `permute` in llama.cpp's conversion.
    """
    split = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
    return split.swapaxes(1, 2).reshape(tensor.shape)


def neighbours_turned(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows as a file has them: the inverse of `half_turned`, `permute` in llama.cpp's."""
    split = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return split.swapaxes(1, 2).reshape(tensor.shape)


def turned_heads(name: str, config: Any) -> int | None:
    """The number of heads of a projection whose rows are reordered; None for other tensors.

    Args:
      name: the tensor's in transformers.
    """
    found = re.search(r"\.(q|k)_proj\.", name)
    if found is None or not _gguf(families.family_of(config)).turns_neighbours:
        return None
    return config.num_attention_heads if found[1] == "q" else config.num_key_value_heads


def architecture(config: Any) -> str:
    """What llama.cpp calls a model; a Mistral is a "llama" there, too."""
    return _gguf(families.family_of(config)).architecture


def gguf_name(name: str, config: Any) -> str:
    """What a file calls a tensor of transformers: the inverse of how names are read.

    Raises:
      ValueError: files of this architecture have no such tensor.
    """
    theirs = {module: own for own, module in _modules(families.family_of(config)).items()}
    module, _, leaf = name.rpartition(".")
    number = re.search(r"\.(\d+)\.", module)
    template = module if number is None else module.replace(number[0], ".{}.", 1)
    if template not in theirs:
        raise ValueError(f"GGUF files of a {config.model_type} have no tensor {name!r}")
    return f"{theirs[template].format(number and number[1])}.{leaf}"


def _translated(name: str, family: Family) -> str:
    """The name in transformers; an unknown tensor stays in its layer, where it is refused later."""
    modules = _modules(family)
    module, _, leaf = name.rpartition(".")
    if inner := re.fullmatch(r"blk\.(\d+)\.(.+)", module):
        found = modules.get(f"blk.{{}}.{inner[2]}", f"{family.layers}{{}}.{inner[2]}")
        return f"{found.format(inner[1])}.{leaf}"
    return f"{modules.get(module, module)}.{leaf}"


def _modules(family: Family) -> dict[str, str]:
    """Transformers' module of each module of a file; {} stands for the number of a layer."""
    theirs = {ours: family.prefix + name for ours, name in family.names.items()}
    theirs |= family.head
    return {name: theirs[ours] for ours, name in _gguf(family).names.items()}


def _gguf(family: Family) -> Gguf:
    if family.gguf is None:
        raise ValueError(f"there are no GGUF files of a {family.model_type}")
    return family.gguf
