"""Read an adapter from a checkpoint of microsoft/LoRA (loralib 0.1), as PEFT would have it.

A layer X has `X.lora_A` (r, in) and `X.lora_B` (out, r), and its update is (lora_alpha / r) B A.
The file does not say what lora_alpha is. `MergedLinear` cuts the outputs of a layer into equal
parts, such as GPT-2's queries, keys and values, and adapts those that its `enable_lora` says. Its A
(n r, in) and B (n out / parts, r) are the factors of n parts, one below the other.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp

from lora_jax.files import json_text
from lora_jax.files.safetensors_bytes import SafetensorsBytes
from lora_jax.interchange.load_peft import Loaded, Onto, load_source
from lora_jax.interchange.names import Names, Row, rows
from lora_jax.interchange.peft_folder import sort_tensors
from lora_jax.interchange.tensor_source import Source, TensorNames
from lora_jax.messages import naming
from lora_jax.methods.peft_joined import third
from lora_jax.methods.peft_lora import LINEAR
from lora_jax.models.parts.family import Place
from lora_jax.models.published.torch_bin import TorchFile
from lora_jax.peft_format import Layouts, Peft, Settings
from lora_jax.quantization.quantize import Storage
from lora_jax.variant import Variant

A, B = LINEAR["a"].name, LINEAR["b"].name
PAPER = "enable_lora=(True, False, True) is what the paper's GPT-2 has"


class Factors(NamedTuple):
    """What the shapes of a layer's A and B say."""

    rank: int
    enabled: tuple[bool, ...] | None
    """Which parts a MergedLinear adapts; None for a layer of one adapter."""

    def settings(self, alpha: float, parts: int | None) -> dict[str, Any]:
        """PEFT's settings of each parameter; one that holds all parts has the ranks of all."""
        several = sum(self.enabled) if self.enabled and parts is None else 1
        return {"r": several * self.rank, "lora_alpha": several * alpha}


def factors(
    a: tuple[int, ...],
    b: tuple[int, ...],
    weight: tuple[int, ...],
    numel: int,
    parts: int | None,
    enable_lora: Sequence[bool] | None,
) -> Factors:
    """What a layer is, from the shapes of its lora_A and lora_B.

    Args:
      weight, numel: the shape of one of its parameters here, for messages, and the number of
        entries of all together.
      parts: how many parameters hold it here, equal parts of its outputs; None if one holds all.
      enable_lora: a MergedLinear's, where it is known.

    Raises:
      ValueError: they do not fit the weight, or which parts they adapt is not known.
    """
    said = f"lora_A {a} and lora_B {b} do not fit a weight of shape {weight}"
    if len(a) != 2 or len(b) != 2 or 0 in (*a, *b) or numel % a[1]:
        raise ValueError(said)
    rank, outputs = b[1], numel // a[1]
    if a[0] == rank and b[0] == outputs:
        return Factors(rank, None)
    divided = parts or len(enable_lora or ())
    adapted = a[0] // rank
    if a[0] % rank or not divided or adapted > divided or b[0] * divided != outputs * adapted:
        also = "" if parts else "; of a MergedLinear, give enable_lora"
        raise ValueError(f"{said}{also if adapted > 1 else ''}")
    if enable_lora is None and adapted < divided:
        raise ValueError(f"{adapted} of {divided} parts are adapted, which is not said: {PAPER}")
    enabled = tuple(enable_lora or (True,) * divided)
    if len(enabled) != divided or sum(enabled) != adapted:
        raise ValueError(f"enable_lora={enabled}, and {adapted} of {divided} parts are adapted")
    return Factors(rank, enabled)


def of_part(peft: Peft, layer: Factors, part: int | None) -> Peft:
    """The adapter of one part of a layer, or of all in one; works on shapes, too."""
    if layer.enabled is None:
        return peft if part is None else third(peft, part, LINEAR)
    a, b, rank = peft.tensors[A], peft.tensors[B], layer.rank
    size = b.shape[0] * rank // a.shape[0]
    where = [n for n, enabled in enumerate(layer.enabled) if enabled]
    if part is not None:
        n = where.index(part)
        own = {A: a[n * rank : (n + 1) * rank], B: b[n * size : (n + 1) * size]}
        return peft._replace(tensors=own)
    whole: Any = jnp.zeros((size * len(layer.enabled), a.shape[0]), b.dtype)
    for n, at in enumerate(where):
        block = b[n * size : (n + 1) * size]
        whole = whole.at[at * size : (at + 1) * size, n * rank : (n + 1) * rank].set(block)
    return peft._replace(tensors={A: a, B: whole})


ALPHA, RANK, ENABLED = "lora_alpha", "r", "enable_lora"
"""What `save_loralib` notes in a file's header: each a number, or words such as true,false,true."""
WRAPPER = "model_state_dict"
"""The key under which the GPT-2 example of microsoft/LoRA saves its tensors."""
PARALLEL = "module."
"""What torch's DistributedDataParallel puts before every name."""
_MASKS = (".attn.bias", ".attn.masked_bias")
"""Buffers of older GPT-2 code, which `lora_state_dict(model, bias="all")` takes for biases."""


class LoralibFile(Source):
    """The tensors of one file, and what its layers are.

    Args:
      path: of safetensors, or a file of torch.save, which is read without unpickling objects.
      alpha, enable_lora: what layers were made with, or None for what the file's header says.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a malformed file, or no alpha.
    """

    suffixes: ClassVar = {"lora_A": A, "lora_B": B}

    def __init__(self, path: Path, alpha: float | None, enable_lora: Sequence[bool] | None):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        self.path = self.config_path = path
        header: Mapping[str, str] = {}
        if path.suffix == ".safetensors":
            self._file = SafetensorsBytes(path)
            header = self._file.metadata()
        else:
            self._file = TorchFile(path, WRAPPER)
        parallel = all(name.startswith(PARALLEL) for name in self._file.names())
        self.before = PARALLEL if parallel else ""
        self._ignored = {name for name in self._file.names() if name.endswith(_MASKS)}
        noted = {
            name: json_text.loads(f"[{header[name]}]", f"{path}: {name} in its header")
            for name in (ALPHA, RANK, ENABLED)
            if name in header
        }
        given = {
            ALPHA: None if alpha is None else [alpha],
            ENABLED: None if enable_lora is None else [*enable_lora],
        }
        for name, values in given.items():
            if values is not None and noted.setdefault(name, values) != values:
                there, wanted = (", ".join(map(str, each)) for each in (noted[name], values))
                raise ValueError(f"{path}: {name} is {there} in its header, not {wanted}")
        match noted.get(ALPHA):
            case [int() | float() as known]:
                with naming(f"{path}: {ALPHA}", OverflowError):
                    self._alpha = float(known)
            case _:
                raise ValueError(
                    f"{path}: it does not say the lora_alpha that it was trained with: give alpha "
                    "(--alpha)"
                )
        self.config: dict[str, Any] = {"peft_type": "LORA", "lora_alpha": self._alpha}
        self._enabled, self._rank = noted.get(ENABLED), noted.get(RANK)
        self._layers: dict[str, tuple[Factors, int | None]] = {}

    def names(self) -> list[str]:
        return [name for name in self._file.names() if name not in self._ignored]

    def settings(self, module: str) -> dict[str, Any]:
        layer, parts = self._layers[module]
        return {"peft_type": "LORA", **layer.settings(self._alpha, parts)}

    def cut(self, peft: Peft, place: Place, layouts: Layouts) -> Peft:
        layer, _ = self._layers[place.name.removesuffix(".weight")]
        return of_part(peft, layer, place.part)

    def sort(self, known: Sequence[Row], shapes: Mapping[str, tuple[int, ...]]) -> TensorNames:
        """What every tensor belongs to, among the parameters of a model that have a name.

        Args:
          shapes: of one layer of each parameter, by path.

        Raises:
          ValueError: a tensor belongs to none or to two, does not fit its layer, or belongs to the
            base; there is no adapter; or which parts of a layer are adapted is not known.
        """
        if any(row.place.name.startswith(PARALLEL) for row in known):
            self.before = ""
        self._ignored -= {f"{self.before}{row.place.name}" for row in known}
        first: dict[tuple[Any, ...], Row] = {}
        for row in known:
            if (same := first.setdefault((row.place.name, row.place.part), row)) is not row:
                both = f"'{same.path}' and '{row.path}'"
                raise ValueError(f"{self.path}: {both} are both '{row.place.name}' in torch")
        found = sort_tensors(self, known)
        with naming(self.path):
            for name, (row, *_) in found.full.items():
                if row.leaf == "weight" and row.module in found.adapters:
                    raise ValueError(
                        f"tensor '{name}' is the base's: the file holds a whole model, and "
                        "adapters alone are read; save loralib.lora_state_dict(model) instead"
                    )
            for module, names in found.adapters.items():
                found.rows[module] = self._rows(module, names, found.rows[module], shapes)
            if self._enabled and not any(layer.enabled for layer, _ in self._layers.values()):
                raise ValueError(f"{ENABLED}={self._enabled}, and no layer is a MergedLinear")
        return found

    def _rows(
        self,
        module: str,
        names: Mapping[str, str],
        rows: list[Row],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> list[Row]:
        """The parameters of a module that have an adapter."""
        if names.keys() != {A, B}:
            own = ", ".join(each.removesuffix(".weight") for each in names)
            raise ValueError(f"'{module}' has {own}, and not lora_A and lora_B alone")
        a, b = (self._file.shape(names[suffix]) for suffix in (A, B))
        parts = None if rows[0].place.part is None else len(rows)
        weight = shapes[rows[0].path]
        with naming(f"'{module}'"):
            layer = factors(a, b, weight, math.prod(weight) * len(rows), parts, self._enabled)
        if self._rank not in (None, [layer.rank]):
            raise ValueError(
                f"'{module}' has rank {layer.rank}, and {RANK} in the header is {self._rank}"
            )
        self._layers[module] = layer, parts
        if layer.enabled is None or parts is None:
            return rows
        return [row for row in rows if layer.enabled[row.place.part or 0]]


def load_loralib(
    file: str | os.PathLike,
    variant_of: Callable[[Settings], Variant],
    names: Names,
    forward: Callable[..., Any],
    params: Any,
    *args: Any,
    alpha: float | None = None,
    enable_lora: Sequence[bool] | None = None,
    quantize: Mapping[Any, Storage] | None = None,
    **kwargs: Any,
) -> Loaded:
    """A function with the adapter of a file of loralib, `torch.save(lora_state_dict(model), file)`.

    The rank of every layer follows from its shapes. What else is in the file, biases or a head,
    trains in full. Nothing in it is trusted: names, shapes and sizes are compared with the model
    before a tensor is read, and no pickle is executed. Neither torch nor loralib is needed.

    Args:
      file: a file of torch.save, or of safetensors.
      variant_of: the variant that PEFT's settings mean: `variants.from_peft`.
      names: what parameters are called in torch: `names_of(model.config)`, or
        `names_from_patterns`.
      forward, params, *args, **kwargs: as for `adapt` and `init`; params are the base that the
        adapter was trained on.
      alpha: the `lora_alpha` of all layers. Files of loralib do not hold it, those of
        `save_loralib` do.
      enable_lora: which parts every `MergedLinear` adapts, such as `(True, False, True)`. It is
        needed unless all three of GPT-2's are. Where the parts are one parameter here, its adapter
        has the sum of their ranks.
      quantize: how frozen weights are stored, as for `adapt`.

    Raises:
      FileNotFoundError: a missing file.
      ValueError: a file that is malformed or of another model, or something that it does not say.
        The message names the file, and the module or tensor.
    """
    onto = Onto(forward, params, names, args, kwargs, quantize)
    leaves = onto.arrays
    shapes = {path: x.shape[names.stacked(path) :] for path, x in leaves.items()}
    source = LoralibFile(Path(file), alpha, enable_lora)
    found = source.sort([*rows(names, leaves)], shapes)
    return load_source(source, found, variant_of, onto)
