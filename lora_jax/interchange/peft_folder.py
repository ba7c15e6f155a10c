"""A PEFT folder as it lies on disk: its config, and which tensor belongs to which module.

PEFT has two modules of a table that is also the head, with the same numbers.
"""

import functools
import json
import math
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from lora_jax.files.atomic import write_atomically
from lora_jax.files.safetensors_bytes import SafetensorsBytes
from lora_jax.interchange.matrices import Matrix
from lora_jax.interchange.names import MODEL, SHARED, Names, Row
from lora_jax.interchange.peft_config import (
    Compiled,
    check,
    compiled,
    of_module,
    refusal_of,
    selects,
)
from lora_jax.interchange.tensor_source import Source, TensorNames
from lora_jax.messages import naming, nearest
from lora_jax.methods.peft_joined import third
from lora_jax.methods.peft_lora import HEAD
from lora_jax.models.parts.family import Place
from lora_jax.models.published.torch_bin import TorchFile
from lora_jax.models.published.weight_files import read_json
from lora_jax.peft_format import Layouts, Peft, Settings, quoted

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TORCH_WEIGHTS = "adapter_model.bin"
"""What PEFT wrote before 0.7; it is read without unpickling objects."""
LONGEST_NAME = 1000
TOKENS = "token_adapter."
"""What stands before the tensors of tokens that train beside LoRA."""


class PeftFolder(Source):
    """The config of a folder, and its tensors: shapes are known at once, contents on `read`."""

    def __init__(self, folder: str | os.PathLike):
        self.config_path = Path(folder) / CONFIG
        if not self.config_path.is_file() and (inner := sorted(Path(folder).glob(f"*/{CONFIG}"))):
            named = ", ".join(str(each.parent) for each in inner)
            raise FileNotFoundError(f"{self.config_path}: no such file; adapters are in {named}")
        self.config: dict[str, Any] = read_json(self.config_path)
        with naming(self.config_path):
            check(self.config)
        path = Path(folder) / WEIGHTS
        if not path.is_file() and (Path(folder) / TORCH_WEIGHTS).is_file():
            path = Path(folder) / TORCH_WEIGHTS
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        self.path = path
        self._file = TorchFile(path) if path.suffix == ".bin" else SafetensorsBytes(path)

    def label(self) -> str:
        """The file, and what the folder says of the model that the adapter belongs to."""
        name = self.config.get("base_model_name_or_path")
        base = f"an adapter of {quoted(name)}" if name else "an adapter of a model without a name"
        return f"{self.path}, {base}"

    def settings(self, module: str) -> dict[str, Any]:
        return of_module(self.config, module, self._patterns)

    @functools.cached_property
    def _patterns(self) -> Compiled:
        return compiled(self.config)

    def cut(self, peft: Peft, place: Place, layouts: Layouts) -> Peft:
        return peft if place.part is None else third(peft, place.part, layouts)


def write_folder(
    folder: str | os.PathLike, config: Mapping[str, Any], tensors: Mapping[str, Any], dtype: Any
) -> Path:
    """Write both files of a folder; give its path. `dtype` is None for the tensors' own.

    Each file is replaced at once, the config last.

    Raises:
      ValueError: a number is beyond the range of `dtype`. Nothing is written.
    """
    folder = Path(folder)
    arrays = {name: cast(name, x, dtype) for name, x in tensors.items()}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_atomically(folder / WEIGHTS, save(arrays, metadata={"format": "pt"}))
    write_atomically(folder / CONFIG, text.encode())
    return folder


def cast(name: str, x: Any, dtype: Any) -> np.ndarray:
    """A tensor in a dtype, or in its own; ValueError for a number beyond the dtype's range."""
    real = jnp.issubdtype(x.dtype, jnp.floating)
    with np.errstate(over="ignore"):  # it is reported below
        made = np.array(x, dtype if dtype and real else x.dtype, order="C")
    if made.dtype != x.dtype and not np.isfinite(made).all():
        largest = float(np.abs(x).max())
        raise ValueError(f"tensor '{name}' holds {largest:.4g}, which is too large for {dtype}")
    return made


def sort_tensors(source: Source, known: Iterable[Row], tied: Collection[str] = ()) -> TensorNames:
    """What every tensor of a source belongs to, among the known parameters of a model.

    Args:
      tied: the paths of tables that are also the head. PEFT writes such a tensor under the names of
        both, of which the model has one.

    Raises:
      ValueError: a tensor belongs to none, or is there under two names, or there is no adapter.
    """
    every = list(known)
    places: dict[str, list[Row]] = {}
    modules: dict[str, list[Row]] = {}
    biases: dict[str, list[Row]] = {}
    for row in every:
        places.setdefault(row.place.name, []).append(row)
        if row.leaf in ("weight", "bias"):
            beside = modules if row.leaf == "weight" else biases
            beside.setdefault(row.module, []).append(row)
    found, unknown = TensorNames(biases=biases), []
    first: dict[tuple[str, ...], str] = {}  # the name of each tensor, without what PEFT adds to it
    for name in source.names():
        if len(name) > LONGEST_NAME or not name.isprintable():  # messages have it as it is
            raise ValueError(f"{source.path}: tensor {quoted(name)} belongs to no module")
        if not name.startswith(MODEL) and name.startswith(SHARED):
            found.shared[name.removeprefix(SHARED)] = name
            continue
        own = name.removeprefix(source.before)
        bare = own.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        if bare in places:
            copy = bare.endswith(".weight") and ".base_layer." in own
            _once(source, first, (bare, "copy" if copy else "full"), name)
            (found.copies if copy else found.full)[name] = places[bare]
            continue
        module = next((each for each in _parents(own) if each in modules), None)
        if module is None:
            unknown.append(name)
            continue
        suffix = own.removeprefix(f"{module}.")
        if suffix.startswith(TOKENS):
            found.tokens.add(module)
        suffix = suffix.removeprefix(TOKENS)
        suffix = source.suffixes.get(suffix, suffix)
        _once(source, first, (module, suffix), name)
        found.adapters.setdefault(module, {})[suffix] = name
        found.rows[module] = modules[module]
    for name in unknown:
        if (table := _of_the_table(name, found, tied)) is None:
            own = name.removeprefix(source.before).replace(".base_layer.", ".").rpartition(".")[0]
            heads = [row.module for row in every if row.path in tied]
            raise ValueError(
                f"{source.label()}: tensor '{name}' belongs to no module of this "
                f"model{f', whose head is {heads[0]!r}' if heads else ''}; nearest: "
                f"{nearest(own, modules)}"
            )
        found.heads[name] = table
    if not found.adapters:
        raise ValueError(f"{source.path}: no tensor of an adapter")
    if lacking := _without_tensors(source.config, found, modules):
        raise ValueError(f"{source.path}: target_modules names '{lacking[0]}', which has no tensor")
    with naming(source.config_path):
        _check_named(source.config, found)
    return found


def _once(
    source: Source, first: dict[tuple[str, ...], str], what: tuple[str, ...], name: str
) -> None:
    """Note the name of a tensor; ValueError if it is there under another, too."""
    if what in first:
        raise ValueError(f"{source.label()}: '{first[what]}' and '{name}' are the same tensor")
    first[what] = name


def _check_named(config: Mapping[str, Any], found: TensorNames) -> None:
    """Raise a ValueError if a tensor belongs to a module, or is a bias, that the config leaves out.

    Weights that train in full are not compared: PEFT puts such a tensor into the model whether
    `modules_to_save` names it or not. It does not name embeddings and heads that it saves because
    the vocabulary has grown, nor did it once name heads of classifiers.
    """
    if not config.get("ensure_weight_tying"):  # it adds the tied ones
        for module in found.adapters:
            if module not in found.tokens and (why := refusal_of(config, module)):
                raise ValueError(f"{why} '{module}', which has tensors")
    if config.get("bias") == "none":
        copied = {row.module for rows in found.copies.values() for row in rows}  # with its bias
        for name, rows in found.full.items():
            module = rows[0].module
            if rows[0].leaf == "bias" and module in found.adapters.keys() - copied:
                raise ValueError(f"bias is 'none', and there is a tensor '{name}'")


def _of_the_table(name: str, found: TensorNames, tied: Collection[str]) -> str | None:
    """The tensor of a table that is also the head, which another of this name would repeat."""
    own = [(each, "base_layer.weight", rows) for each, rows in found.copies.items()]
    own += [(each, "weight", rows) for each, rows in found.full.items()]
    for module, tensors in found.adapters.items():
        rows = found.rows[module]
        own += [(each, HEAD.get(suffix, suffix), rows) for suffix, each in tensors.items()]
    for each, suffix, rows in own:
        if rows[0].path in tied and name.endswith(f".{suffix}"):
            return each
    return None


def _without_tensors(
    config: Mapping[str, Any], found: TensorNames, known: Collection[str]
) -> list[str]:
    """The known modules that a list of `target_modules` names, and that have no adapter.

    Where other fields narrow the choice, or it is a regular expression, none is found.
    """
    targets = config.get("target_modules")
    narrowed = any(config.get(name) for name in ("exclude_modules", "layers_to_transform"))
    if narrowed or not (isinstance(targets, list) and all(isinstance(x, str) for x in targets)):
        return []
    full = {row.module for each in found.full.values() for row in each if row.leaf == "weight"}
    present = found.adapters.keys() | full
    tails = [name for name in targets if name not in known]  # a whole name means one module alone
    named = (module for module in known if module in targets or selects(tails, module))
    return [module for module in named if module not in present]


def _parents(name: str) -> Iterable[str]:
    """The modules that a name may be of, the longest first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def head_of(names: Names, path: str) -> str:
    """The module of the head that is also the table `path`.

    Raises:
      ValueError: it has no known name.
    """
    if names.head is None:
        raise ValueError(
            f"'{path}' is also the head, of which these names say no module (names_from_patterns "
            "takes head='lm_head'); merge the weights instead"
        )
    return names.head


def head_adapters(stored: Iterable[tuple[Matrix, Peft]], names: Names) -> dict[str, Peft]:
    """LoRA of the heads whose tables have it, by module: the transposes of the tables'.

    Raises:
      ValueError: a head has no known name.
    """
    return {
        head_of(names, each.path): peft._replace(
            tensors={HEAD[name]: x.T for name, x in peft.tensors.items()}
        )
        for each, peft in stored
        if each.tied and of_both(peft.tensors)
    }


def of_both(tensors: Mapping[str, object]) -> bool:
    """Whether PEFT has such an adapter of a table for its head, too: LoRA, and not DoRA."""
    return tensors.keys() == HEAD.keys()


def check_scales(source: Source, found: TensorNames, settings: Mapping[str, Settings]) -> None:
    """Raise a ValueError if the adapter of a head has another scale than that of its table."""
    each = ((m, suffix, tensor) for m, x in found.adapters.items() for suffix, tensor in x.items())
    modules = {tensor: (module, HEAD[suffix]) for module, suffix, tensor in each if suffix in HEAD}
    for name, table in found.heads.items():
        if table in modules:
            module, suffix = modules[table]
            head = name.removeprefix(MODEL).removesuffix(f".{suffix}")
            if not math.isclose(_scale(source.settings(head)), _scale(settings[module])):
                raise ValueError(f"'{head}' has another scale than '{module}', its table")


def _scale(settings: Settings) -> float:
    """LoRA's, NaN if there is none. The head has the factors of the table, whatever its rank."""
    try:
        rank, alpha = settings.get("r", 8), settings.get("lora_alpha", 8)
        return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    except (ArithmeticError, TypeError, ValueError):
        return math.nan
