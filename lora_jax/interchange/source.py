"""An adapter on disk, of whatever format, as PEFT would have it: modules, settings and tensors."""

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from lora_jax.interchange.names import Row
from lora_jax.models.parts.family import Place
from lora_jax.peft_format import Layouts, Peft

_FLOATS = ("F64", "F32", "F16", "BF16")
_INTEGERS = {"I64": np.int64, "I32": np.int32}


class Source(Protocol):
    """Shapes are known at once, contents on `read`."""

    path: Path
    config_path: Path
    """The file that says what the settings are, for messages."""
    config: dict[str, Any]

    def names(self) -> list[str]: ...

    def label(self) -> str:
        """What messages on tensors begin with."""
        ...

    def abstract(self, name: str) -> jax.ShapeDtypeStruct: ...

    def read(self, name: str) -> np.ndarray: ...

    def settings(self, module: str) -> dict[str, Any]:
        """PEFT's settings of one module."""
        ...

    def cut(self, peft: Peft, place: Place, layouts: Layouts) -> Peft:
        """The adapter of one parameter, from that of its module in torch; works on shapes, too.

        Args:
          layouts: those of its method (`Variant.peft_layouts`).
        """
        ...


class TensorFile(Protocol):
    """A file of named tensors; dtypes are called as in safetensors."""

    path: Path

    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> str: ...
    def read(self, name: str) -> np.ndarray: ...


def abstract(file: TensorFile, name: str) -> jax.ShapeDtypeStruct:
    """The shape of a tensor of real numbers, or of indices; ValueError for any other."""
    dtype = file.dtype(name)
    if dtype not in (*_FLOATS, *_INTEGERS):
        raise ValueError(f"{file.path}: tensor '{name}' is {dtype}")
    return jax.ShapeDtypeStruct(file.shape(name), _INTEGERS.get(dtype, np.float32))


def read(file: TensorFile, name: str) -> np.ndarray:
    """A tensor; ValueError if a number in it is not finite."""
    tensor = file.read(name)
    if not np.isfinite(tensor).all():
        raise ValueError(f"{file.path}: tensor '{name}' holds NaN or an infinity")
    return tensor


@dataclasses.dataclass(frozen=True)
class TensorNames:
    """The names of an adapter's tensors, by what they belong to; who reads its file fills them."""

    adapters: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    """By module, and what follows its name."""
    rows: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
    """What each of these modules is here; several parameters, where torch has joined them."""
    shared: dict[str, str] = dataclasses.field(default_factory=dict)
    """What all modules share, by what follows `base_model.`."""
    full: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
    """The parameters that were trained in full, by the tensor's name; several, where joined."""
    copies: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
    """The weights of the base that PEFT has saved beside their adapters, by the tensor's name."""
    biases: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
    """The biases beside each weight of the model that has some, by module."""
    tokens: set[str] = dataclasses.field(default_factory=set)
    """The modules whose tokens train beside adapters of others."""
    heads: dict[str, str] = dataclasses.field(default_factory=dict)
    """The tensors of a head that is also the table, each with the table's own, its equal."""
