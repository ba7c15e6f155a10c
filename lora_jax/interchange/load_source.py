"""Put an adapter on disk, of whatever format, onto a function of the same weights."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from lora_jax.interchange.check_source import (
    check_copies,
    check_finite,
    check_heads,
    check_shared,
    refuse_tied,
    with_frozen_layers,
)
from lora_jax.interchange.fill_adapter import each_row, filled, lora_biases
from lora_jax.interchange.names import Names
from lora_jax.interchange.peft_config import of_tokens
from lora_jax.interchange.source import Source, TensorNames
from lora_jax.interchange.tied_head import check_scales
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
    try:
        settings = _settings(source, found, shapes)
        targets = _targets(found, settings, variant_of, names)
        refuse_tied(found, settings, onto.tied)
        check_scales(source, found, settings)
        biases = lora_biases(found)
    except ValueError as error:
        raise ValueError(f"{source.config_path}: {error}") from None
    full = sorted({row.path for _, row in (*each_row(found.full), *each_row(biases))})
    also = [only(path) for path in full]
    adapted = adapt(onto.forward, targets=targets, also_train=also, quantize=onto.quantize)
    key = jax.random.key(0)  # what is drawn is replaced
    try:
        fill = functools.partial(filled, source, found, settings, names)
        structure = (adapted, tuple(shapes.items()))
        if structure not in onto.begun:
            begun = init_shapes(adapted, key, *onto.inputs, **onto.kwargs)
            jax.eval_shape(fill, *begun, shapes)  # compares all shapes, before anything is read
    except ValueError as error:
        raise ValueError(f"{source.label()}: {error}") from None
    read = {name: source.read(name) for name in shapes}
    if (begun := onto.begun.pop(structure, None)) is None:
        begun = adapted.init(key, *onto.inputs, **onto.kwargs)
    onto.begun[structure] = begun  # the last one that was used
    for oldest in list(onto.begun)[:-MOST_BEGUN]:
        onto.begun.pop(oldest, None)  # another thread may have done it
    try:
        check_copies(found, leaves, names, read)
        check_heads(found, read)
        trainable, frozen = fill(*begun, read)
        check_finite(trainable, frozen)
        check_shared(found, trainable, frozen)
    except ValueError as error:
        raise ValueError(f"{source.label()}: {error}") from None
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
