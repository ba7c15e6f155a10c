"""Checkpoints of microsoft/LoRA (loralib 0.1): read as PEFT would have them, and written.

A layer X has `X.lora_A` (r, in) and `X.lora_B` (out, r), and its update is (lora_alpha / r) B A.
The file does not say what lora_alpha is. `MergedLinear` cuts the outputs of a layer into equal
parts, such as GPT-2's queries, keys and values, and adapts those that its `enable_lora` says. Its A
(n r, in) and B (n out / parts, r) are the factors of n parts, one below the other.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from lora_jax.files.arrays import to_host
from lora_jax.files.atomic import write_atomically
from lora_jax.files.tree_file import SafetensorsBytes
from lora_jax.interchange.load_peft import Loaded, Onto, load_source
from lora_jax.interchange.matrices import Matrix, all_params, matrices, torch_tensor
from lora_jax.interchange.names import Names, Row, rows
from lora_jax.interchange.peft_folder import cast
from lora_jax.interchange.tensor_source import Source, TensorNames
from lora_jax.methods.peft_joined import PARTS, third
from lora_jax.methods.peft_lora import LINEAR, as_peft
from lora_jax.models.parts.family import Place
from lora_jax.models.published.torch_bin import TorchFile
from lora_jax.peft_format import Layouts, Peft, Settings, number
from lora_jax.quantization.quantize import Storage
from lora_jax.suggest import nearest
from lora_jax.transform.placement import Frozen, Trainable
from lora_jax.variant import Factors, Variant

A, B = LINEAR["a"].name, LINEAR["b"].name
PAPER = "enable_lora=(True, False, True) is what the paper's GPT-2 has"


class LayerFactors(NamedTuple):
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
) -> LayerFactors:
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
        return LayerFactors(rank, None)
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
    return LayerFactors(rank, enabled)


def of_part(peft: Peft, layer: LayerFactors, part: int | None) -> Peft:
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
"""What `save_loralib` notes in a file's header."""
WRAPPER = "model_state_dict"
"""The key under which the GPT-2 example of microsoft/LoRA saves its tensors."""
PARALLEL = "module."
"""What torch's DistributedDataParallel puts before every name."""
_FACTORS = {"lora_A": A, "lora_B": B}
_WORDS = ("false", "true")
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

    def __init__(self, path: Path, alpha: float | None, enable_lora: Sequence[bool] | None):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        self.path = self.config_path = path
        noted: Mapping[str, str] = {}
        if path.suffix == ".safetensors":
            self._file = SafetensorsBytes(path)
            noted = self._file.metadata()
        else:
            self._file = TorchFile(path, WRAPPER)
        enabled = None if enable_lora is None else tuple(map(bool, enable_lora))
        try:
            own: dict[str, Any] = {ALPHA: float(noted[ALPHA])} if ALPHA in noted else {}
            if ENABLED in noted:
                own[ENABLED] = tuple(bool(_WORDS.index(x)) for x in noted[ENABLED].split(","))
        except ValueError as error:
            raise ValueError(f"{path}: its header is not that of save_loralib: {error}") from None
        for name, given in ((ALPHA, alpha), (ENABLED, enabled)):
            if given is not None and own.setdefault(name, given) != given:
                raise ValueError(f"{path}: {name} in its header is {own[name]}, and not {given}")
        if ALPHA not in own:
            raise ValueError(f"{path}: it does not say its lora_alpha: give alpha (--alpha)")
        self._alpha, self._enabled = float(own[ALPHA]), own.get(ENABLED)
        self.config: dict[str, Any] = {"peft_type": "LORA", "lora_alpha": self._alpha}
        self._layers: dict[str, tuple[LayerFactors, int | None]] = {}
        self._names: list[str] = []

    def names(self) -> list[str]:
        """Of the tensors that the model has, once they are sorted."""
        return self._names

    def stored(self) -> list[str]:
        """The names of all tensors in the file, without what `DistributedDataParallel` adds."""
        names = self._file.names()
        parallel = all(name.startswith(PARALLEL) for name in names)
        return [name.removeprefix(PARALLEL) for name in names] if parallel else names

    def settings(self, module: str) -> dict[str, Any]:
        layer, parts = self._layers[module]
        return {"peft_type": "LORA", **layer.settings(self._alpha, parts)}

    def cut(self, peft: Peft, place: Place, layouts: Layouts) -> Peft:
        layer, _ = self._layers[place.name.removesuffix(".weight")]
        return of_part(peft, layer, place.part)

    def sort(self, known: Iterable[Row], shapes: Mapping[str, tuple[int, ...]]) -> TensorNames:
        """What every tensor belongs to, among the parameters of a model that have a name.

        Args:
          shapes: of one layer of each parameter, by path.

        Raises:
          ValueError: a tensor belongs to none or to two, does not fit its layer, or is of the base;
            there is no adapter; or which parts of a layer are adapted is not known.
        """
        places: dict[str, list[Row]] = {}
        for row in known:
            same = places.setdefault(row.place.name, [])
            if twice := [each for each in same if each.place.part == row.place.part]:
                both = f"'{twice[0].path}' and '{row.path}'"
                raise ValueError(f"{self.path}: {both} are both '{row.place.name}' in torch")
            same.append(row)
        try:
            found = self._sorted(places)
            for module, names in found.adapters.items():
                found.rows[module] = self._rows(module, names, found.rows[module], shapes)
            if self._enabled and not any(layer.enabled for layer, _ in self._layers.values()):
                raise ValueError(f"{ENABLED}={self._enabled}, and no layer is a MergedLinear")
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        return found

    def _sorted(self, places: Mapping[str, list[Row]]) -> TensorNames:
        found = TensorNames()
        every = self._file.names()
        parallel = not any(name.startswith(PARALLEL) for name in places)
        parallel = parallel and all(name.startswith(PARALLEL) for name in every)
        for stored in every:
            name = stored.removeprefix(PARALLEL) if parallel else stored
            module, _, leaf = name.rpartition(".")
            if leaf in _FACTORS and f"{module}.weight" in places:
                found.adapters.setdefault(module, {})[_FACTORS[leaf]] = stored
                found.rows[module] = places[f"{module}.weight"]
            elif name in places:
                found.full[stored] = places[name]
            elif name.endswith(_MASKS):
                continue
            else:
                modules = [each.rpartition(".")[0] for each in places]
                near = nearest(module, modules)
                raise ValueError(f"tensor '{stored}' is of no module here; nearest: {near}")
            self._names.append(stored)
        if not found.adapters:
            raise ValueError("no tensor is called lora_A: not a checkpoint of microsoft/LoRA")
        for name, (row, *_) in found.full.items():
            if row.leaf == "weight" and row.module in found.adapters:
                raise ValueError(
                    f"tensor '{name}' is the base's: the file holds a whole model, and adapters "
                    "alone are read; save loralib.lora_state_dict(model) instead"
                )
        return found

    def _rows(
        self,
        module: str,
        names: Mapping[str, str],
        rows: list[Row],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> list[Row]:
        """The parameters of a module that have an adapter."""
        if lacking := [each for each, suffix in _FACTORS.items() if suffix not in names]:
            raise ValueError(f"'{module}' has no {lacking[0]}")
        a, b = (self._file.shape(names[suffix]) for suffix in (A, B))
        parts = None if rows[0].place.part is None else len(rows)
        weight = shapes[rows[0].path]
        try:
            layer = factors(a, b, weight, math.prod(weight) * len(rows), parts, self._enabled)
        except ValueError as error:
            raise ValueError(f"'{module}': {error}") from None
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
    found = source.sort(rows(names, leaves), shapes)
    return load_source(source, found, variant_of, onto)


class Layer(NamedTuple):
    """How a layer is made that loads an adapter: `getattr(loralib, kind)(in, out, **options)`."""

    kind: str
    """`Linear`, `MergedLinear` or `Embedding`."""
    options: dict[str, Any]


class LoralibCheckpoint(NamedTuple):
    """What was written."""

    file: Path
    rank: int
    alpha: float
    layers: Mapping[str, Layer]
    """The layers that a model must have to load it, by the names of its modules."""


def save_loralib(
    file: str | os.PathLike,
    trainable: Trainable,
    frozen: Frozen,
    names: Names,
    *,
    dtype: Any = None,
) -> LoralibCheckpoint:
    """Write a file of safetensors, as `loralib.lora_state_dict` has it.

    It is loaded by `model.load_state_dict(safetensors.torch.load_file(file), strict=False)`. All
    layers have one rank and one lora_alpha, which the header says: smaller ranks are filled up with
    zeros, and where scales differ, they are a part of B and lora_alpha is the rank. The base is
    untouched: what starts from it (PiSSA, OLoRA) has twice the rank. Parameters that train in full
    are in the file, too.

    Args:
      names: what parameters are called in torch: `names_of(model.config)`, or
        `names_from_patterns`.
      dtype: of the tensors; the adapter's own by default.

    Raises:
      ValueError: loralib cannot compute the same, or a weight has no torch name. Nothing is
        written.
    """
    if biased := next((each for each in frozen.spec.adapted if each.bias), None):
        raise ValueError(
            f"'{biased.bias}' is adapted with '{biased.use.path}', and loralib adapts no biases: "
            "merge the weights"
        )
    found: dict[str, dict[int | None, Peft]] = {}
    kinds: dict[str, Matrix] = {}
    for each in matrices(trainable, frozen, names):
        parts = found.setdefault(each.module, {})
        if each.place.part in parts:
            raise ValueError(f"'{each.path}' and another weight are both '{each.module}' in torch")
        parts[each.place.part], kinds[each.module] = _plain(each), each
    if not found:
        raise ValueError("there is no adapter to write: merge the weights, and write the model")
    rank, alpha, folded = _common([peft for parts in found.values() for peft in parts.values()])
    divided = {n for parts in found.values() for n in parts if n is not None}
    enabled = tuple(n in divided for n in range(PARTS)) if divided else None
    tensors = {}
    for module, parts in found.items():
        order: list[int | None] = [None] if None in parts else [*sorted(divided)]
        like = next(iter(parts.values()))
        both = [_padded(parts.get(n), like, rank, folded) for n in order]
        tensors[f"{module}.lora_A"] = np.concatenate([a for a, _ in both])
        tensors[f"{module}.lora_B"] = np.concatenate([b for _, b in both])
    tensors |= _trained_in_full(trainable, frozen, names, set(found))
    arrays = {name: cast(name, x, dtype) for name, x in tensors.items()}
    header = {"format": "pt", ALPHA: f"{alpha!r}", RANK: str(rank)}
    if enabled is not None:
        header[ENABLED] = ",".join(_WORDS[each] for each in enabled)
    write_atomically(Path(file), save(arrays, metadata=header))
    layers = {module: _layer(each, rank, alpha, enabled) for module, each in kinds.items()}
    return LoralibCheckpoint(Path(file), rank, alpha, layers)


def _plain(each: Matrix) -> Peft:
    """A matrix's adapter as PEFT's plain LoRA, with its alpha where it has one.

    Raises:
      ValueError: it has no such adapter, or is a table that is also the head.
    """
    title = each.variant.title or type(each.variant).__name__
    if (both := each.variant.as_lora(each.base, each.factors)) is None:
        raise ValueError(
            f"'{each.path}': {title} is no plain LoRA, which is all that loralib has: merge the "
            "weights"
        )
    if each.tied:
        raise ValueError(
            f"'{each.path}' is also the head, which loralib.Embedding leaves as it is: merge the "
            "weights"
        )
    peft = each.variant.to_peft(each.base, each.factors)
    if peft is not None and peft.tensors.keys() == {A, B}:
        return peft
    return as_peft(*both, 1.0, Factors({}, {}), False)


def _common(every: list[Peft]) -> tuple[int, float, bool]:
    """The rank and alpha of all, and whether scales must be a part of B."""
    rank = max(peft.settings["r"] for peft in every)
    scales = {_scale(peft) for peft in every}
    if len({(peft.settings["r"], peft.settings["lora_alpha"]) for peft in every}) == 1:
        return rank, every[0].settings["lora_alpha"], False
    if len(scales) == 1 and (alpha := number(scales.pop() * rank)) / rank == _scale(every[0]):
        return rank, alpha, False
    return rank, rank, True


def _scale(peft: Peft) -> float:
    return peft.settings["lora_alpha"] / peft.settings["r"]


def _padded(
    peft: Peft | None, like: Peft, rank: int, folded: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A (rank, in) and B (out, rank); zeros for a part without an adapter."""
    a, b = (to_host((peft or like).tensors[name]) for name in (A, B))
    if peft is None:
        a, b = np.zeros_like(a), np.zeros_like(b)
    elif folded:
        b = (_scale(peft) * b).astype(b.dtype)
    missing = (0, rank - len(a))
    return np.pad(a, (missing, (0, 0))), np.pad(b, ((0, 0), missing))


def _layer(each: Matrix, rank: int, alpha: float, enabled: tuple[bool, ...] | None) -> Layer:
    kind = "Embedding" if each.lookup else "Linear"
    options: dict[str, Any] = {"r": rank, "lora_alpha": alpha}
    if each.place.part is not None and enabled is not None:
        kind = "MergedLinear"
        options["enable_lora"] = [*enabled]
    if each.conv1d:
        options["fan_in_fan_out"] = True
    return Layer(kind, options)


def _trained_in_full(
    trainable: Trainable, frozen: Frozen, names: Names, adapted: set[str]
) -> dict[str, np.ndarray]:
    """The tensors of parameters that train in full, whole where they are a part here."""
    params = all_params(trainable, frozen)
    by_tensor: dict[str, list[Row]] = {}
    for row in rows(names, params):
        by_tensor.setdefault(row.place.name, []).append(row)
    trained = {row.path for every in by_tensor.values() for row in every}
    if missing := trainable["params"].keys() - trained:
        raise ValueError(f"'{min(missing)}' trains in full, and has no torch name")
    found = {}
    for name, every in by_tensor.items():
        own = [row for row in every if row.path in trainable["params"]]
        if not own:
            continue
        path = own[0].path
        if path in frozen.spec.tied:
            raise ValueError(
                f"'{path}' trains in full and is also the head, which not all models of loralib "
                "share: merge the weights"
            )
        if own[0].module in adapted and own[0].leaf == "weight":
            raise ValueError(
                f"'{path}' trains in full, and other parts of '{own[0].module}' have adapters: "
                "merge the weights"
            )
        found[name] = torch_tensor(every, params, names)
    return found
