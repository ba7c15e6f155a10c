"""Read an adapter onto any function of the same weights: from a Hugging Face PEFT folder.

`load_source` is the same of any other format, and `check_*` what must hold beside the shapes.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.base import Kernel
from lora_jax.files.arrays import to_host
from lora_jax.interchange.matrices import kernels_of
from lora_jax.interchange.names import Names, rows
from lora_jax.interchange.peft_config import of_tokens
from lora_jax.interchange.peft_folder import PeftFolder, check_scales, of_both, sort_tensors
from lora_jax.interchange.tensor_source import (
    Source,
    TensorNames,
    cut,
    each_row,
    filled,
    lora_biases,
)
from lora_jax.messages import naming
from lora_jax.methods.peft_lora import HEAD
from lora_jax.partition import flatten, is_array, only
from lora_jax.peft_format import Settings
from lora_jax.quantization.quantize import Storage
from lora_jax.transform.adapt import Adapted, adapt, init_shapes
from lora_jax.transform.discover import discover
from lora_jax.transform.placement import Frozen, Trainable
from lora_jax.transform.target_patterns import layers as some_layers
from lora_jax.variant import Variant

MOST_BEGUN = 8
"""`Onto` keeps what `init` gave for this many structures of adapters, those last used."""


class Loaded(NamedTuple):
    """An adapted function with the adapter of a folder or file."""

    adapted: Adapted
    trainable: Trainable
    frozen: Frozen
    config: dict[str, Any]
    """The folder's adapter_config.json, or what a file says in its place."""


@dataclasses.dataclass(frozen=True)
class Onto:
    """What an adapter is loaded onto: arguments of `load_peft`."""

    forward: Callable[..., Any]
    params: Any
    names: Names
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    quantize: Mapping[Any, Storage] | None = None
    begun: dict[Any, tuple[Trainable, Frozen]] = dataclasses.field(default_factory=dict)
    """What `init` gave for each structure of adapters that was loaded: methods, targets, shapes."""

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What comes first when the function is traced: its parameters and inputs."""
        return (self.params, *self.args)

    @property
    def arrays(self) -> dict[str, Any]:
        """The arrays of the parameters by path."""
        return {path: x for path, x in flatten(self.params)[0].items() if is_array(x)}

    @functools.cached_property
    def tied(self) -> list[str]:
        """The paths of tables that are also the head."""
        uses = discover(self.forward, *self.inputs, **self.kwargs)
        return [path for path, use in uses.items() if use.is_tied]


@np.errstate(over="ignore")  # check_finite refuses what overflows
def load_source(
    source: Source, found: TensorNames, variant_of: Callable[[Settings], Variant], onto: Onto
) -> Loaded:
    """`load_peft` of any source, whose tensors were found to be of these modules."""
    found = with_frozen_layers(found)
    leaves, names = onto.arrays, onto.names
    shapes = {name: source.abstract(name) for name in source.names()}
    with naming(source.config_path):
        settings = _settings(source, found, shapes)
        targets = _targets(found, settings, variant_of, names)
        refuse_tied(found, settings, onto.tied)
        check_scales(source, found, settings)
        biases = lora_biases(found)
    full = sorted({row.path for _, row in (*each_row(found.full), *each_row(biases))})
    also = [only(path) for path in full]
    adapted = adapt(onto.forward, targets=targets, also_train=also, quantize=onto.quantize)
    key = jax.random.key(0)  # what is drawn is replaced
    with naming(source.label()):
        fill = functools.partial(filled, source, found, settings, names)
        structure = (adapted, tuple(shapes.items()))
        if structure not in onto.begun:
            begun = init_shapes(adapted, key, *onto.inputs, **onto.kwargs)
            jax.eval_shape(fill, *begun, shapes)  # compares all shapes, before anything is read
    read = {name: source.read(name) for name in shapes}
    if (begun := onto.begun.pop(structure, None)) is None:
        begun = adapted.init(key, *onto.inputs, **onto.kwargs)
    onto.begun[structure] = begun  # the last one that was used
    for oldest in list(onto.begun)[:-MOST_BEGUN]:
        onto.begun.pop(oldest, None)  # another thread may have done it
    with naming(source.label()):
        check_copies(found, leaves, names, read, kernels_of(begun[1]))
        check_heads(found, read)
        trainable, frozen = fill(*begun, read)
        check_finite(trainable, frozen)
        check_shared(found, trainable, frozen)
    return Loaded(adapted, trainable, frozen, source.config)


def _settings(
    source: Source, found: TensorNames, abstract: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, dict[str, Any]]:
    """What a source says of each module with an adapter."""
    if source.config.get("trainable_token_indices") and not found.tokens:
        raise ValueError("trainable_token_indices names tokens, and no tensor has their rows")
    settings = {}
    for module, tensors in found.adapters.items():
        if module in found.tokens:
            settings[module] = of_tokens(source.config, module)
            continue
        shapes = {suffix: abstract[name].shape for suffix, name in tensors.items()}
        beside = {"layer_has_bias": module in found.biases, "tensor_shapes": shapes}
        settings[module] = {**source.settings(module), **beside}
    return settings


def _targets(
    found: TensorNames,
    settings: Mapping[str, Settings],
    variant_of: Callable[[Settings], Variant],
    names: Names,
) -> dict[Any, Variant]:
    targets: dict[Any, Variant] = {}
    known: dict[str, Variant] = {}  # most modules have the same settings
    stacks: dict[str, list[Variant]] = {}
    for module, each in found.rows.items():
        if (own := repr(settings[module])) not in known:
            known[own] = variant_of(settings[module])
        for row in each:
            pattern = only(row.path)
            one = some_layers(pattern, row.layer) if names.stacked(row.path) else pattern
            targets[one] = known[own]
            if names.stacked(row.path):
                stacks.setdefault(row.path, []).append(known[own])
    for path, layers in stacks.items():
        try:
            layers[0].align(tuple(layers))
        except ValueError as error:
            raise ValueError(
                f"'{path}': {error}; merge the adapter in PEFT (`merge_and_unload`), and read the "
                "merged model"
            ) from None
    return targets


def load_peft(
    folder: str | os.PathLike,
    variant_of: Callable[[Settings], Variant],
    names: Names,
    forward: Callable[..., Any],
    params: Any,
    *args: Any,
    quantize: Mapping[Any, Storage] | None = None,
    **kwargs: Any,
) -> Loaded:
    """A function with the adapter of a folder that PEFT, or `save_peft`, has written.

    Nothing in the folder is trusted: names, shapes and sizes are compared with the config and the
    model before a tensor is read, and no pickle is executed.

    Args:
      variant_of: the variant that PEFT's settings mean: `variants.from_peft`.
      names: what parameters are called in torch: `names_of(model.config)`, or
        `names_from_patterns`.
      forward, params, *args, **kwargs: as for `adapt` and `init`; params are the base that the
        adapter was trained on.
      quantize: how frozen weights are stored, as for `adapt`.

    Raises:
      FileNotFoundError: a missing file.
      ValueError: a file that is malformed, of a method that is not here, or of another model. The
        message names the file, and the module or tensor.
    """
    reader = PeftReader(variant_of, names, forward, params, *args, quantize=quantize, **kwargs)
    return reader(folder)


class PeftReader:
    """`load_peft` of many folders onto one function: `PeftReader(...)(folder)`.

    The function is traced once. Folders of one structure (methods, settings, targets, ranks) share
    the arrays that no folder has, the base among them, quantised or not; the first of a structure
    takes longest. Threads may share a reader.

    Args:
      variant_of, names, forward, params, *args, quantize, **kwargs: as for `load_peft`.
    """

    def __init__(
        self,
        variant_of: Callable[[Settings], Variant],
        names: Names,
        forward: Callable[..., Any],
        params: Any,
        *args: Any,
        quantize: Mapping[Any, Storage] | None = None,
        **kwargs: Any,
    ) -> None:
        self._variant_of, self._names = variant_of, names
        self._onto = Onto(forward, params, names, args, kwargs, quantize)

    def __call__(self, folder: str | os.PathLike) -> Loaded:
        """The adapter of a folder; raises as `load_peft`."""
        source, onto = PeftFolder(folder), self._onto
        found = sort_tensors(source, rows(self._names, onto.arrays), onto.tied)
        _check_wrapped(source, found, self._names)
        return load_source(source, found, self._variant_of, onto)


def _check_wrapped(source: PeftFolder, found: TensorNames, names: Names) -> None:
    """Raise a ValueError for an adapter that does nothing in PEFT."""
    for module in found.adapters:
        if module in names.unwrapped and module not in found.tokens:
            raise ValueError(
                f"{source.label()}: the adapter of '{module}' does nothing in PEFT, whose model "
                "reads the weight past it"
            )


def refuse_tied(
    found: TensorNames, settings: Mapping[str, Settings], tied: Collection[str]
) -> None:
    """PEFT changes a table alone, not a head tied to it; its trainable tokens change both.

    A table that trains in full, or has LoRA, is written twice where the head changes with it. A
    head's DoRA has other magnitudes than its table's.
    """
    kinds = {module: each["peft_type"] for module, each in settings.items()}
    alone = {module: kind for module, kind in kinds.items() if kind != "TRAINABLE_TOKENS"}
    twice = {*found.heads.values()}
    for module, tensors in found.adapters.items():
        if of_both(tensors) and twice.issuperset(tensors.values()):
            alone.pop(module, None)
    alone |= dict.fromkeys(found.full.keys() - twice, "PEFT")
    for name, row in each_row({**found.rows, **found.full}):
        if name in alone and row.path in tied and settings.get(name, {}).get("use_dora"):
            raise ValueError(
                f"'{row.path}' is also the head, whose DoRA in PEFT is not the table's"
            )
        if name in alone and row.path in tied:
            raise ValueError(f"'{row.path}' is also the head, which {alone[name]} leaves as it is")


def with_frozen_layers(found: TensorNames) -> TensorNames:
    """Weights saved whole, of stacks with adapters in other layers, as copies of the base.

    Here one stacked weight has adapters or trains in full. A module is saved whole for its bias,
    too, and then its weight is that of the base.
    """
    adapted = {row.path for _, row in each_row(found.rows)}
    full, copies = {}, dict(found.copies)
    for name, several in found.full.items():
        beside = [row for row in several if row.path in adapted and row.module not in found.rows]
        if beside:
            copies[name] = beside
        if others := [row for row in several if row not in beside]:
            full[name] = others
    return dataclasses.replace(found, full=full, copies=copies)


def check_copies(
    found: TensorNames,
    leaves: Mapping[str, Any],
    names: Names,
    read: Mapping[str, Any],
    kernels: Mapping[str, Kernel],
) -> None:
    """Raise a ValueError if a weight of the base that PEFT has saved is not that of the params."""
    for name, row in each_row(found.copies):
        own = cut(row.place, read[name], kernels.get(row.path))
        mine, theirs = leaves[row.path], jnp.asarray(own)
        mine = mine[row.layer] if names.stacked(row.path) else mine
        dtypes = mine.dtype, theirs.dtype  # one of them may be rounded
        if not any(jnp.array_equal(mine.astype(d), theirs.astype(d)) for d in dtypes):
            said = f"tensor '{name}' is not the '{row.path}' of these params"
            if row.module not in found.rows:
                said += (
                    ", and its other layers have adapters, which one stacked weight cannot have "
                    "here: read the merged model (`merge_and_unload` in PEFT)"
                )
            raise ValueError(said)


def check_heads(found: TensorNames, read: Mapping[str, Any]) -> None:
    """Raise a ValueError if a table that is also the head has other numbers there."""
    for name, table in found.heads.items():
        transposed = table.rpartition(".")[2] in HEAD
        wanted = read[table].T if transposed else read[table]
        if not np.array_equal(read[name], wanted):
            raise ValueError(
                f"tensor '{name}' belongs to no module, and is not equal to '{table}', the table "
                "that is also the head"
            )


def check_finite(trainable: Trainable, frozen: Frozen) -> None:
    """Raise a ValueError if a number of a file was too large for the dtype that it has here.

    Scales, which come of the config, are among the constants.
    """
    adapters = {"trainable": trainable, "constants": frozen.constants, "shared": frozen.shared}
    for path, x in flatten(adapters)[0].items():
        if jnp.issubdtype(x.dtype, jnp.inexact) and not jnp.isfinite(x).all():
            raise ValueError(f"{path}: a number is too large for {x.dtype}")


def check_shared(found: TensorNames, trainable: Trainable, frozen: Frozen) -> None:
    """Raise a ValueError if a file has something for all modules that no variant here shares."""
    known: set[str] = set()
    shapes = [shape for each in frozen.spec.adapted for shape in each.matrices]
    for variant, shared in frozen.shared_by_group(trainable).items() if found.shared else ():
        arrays = jax.tree.map(to_host, {**shared.constants, **shared.trainable})
        known |= variant.shared_to_peft(arrays, shapes).keys()
    if other := sorted(found.shared.keys() - known):
        raise ValueError(
            f"tensor '{found.shared[other[0]]}' belongs to no module, and nothing shares it"
        )
