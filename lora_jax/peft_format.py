"""One adapter as Hugging Face PEFT stores it: settings, and tensors by their names on disk.

A method's own file says what its settings and factors are called there: `peft_config` and
`peft_layouts`, or `Variant.to_peft`, `from_peft` and `factors_from_peft`. Paths, stacked layers and
files are `lora_jax.interchange`'s.
"""

import copy
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from jax import Array

from lora_jax.files.arrays import to_host

Settings = Mapping[str, Any]
"""Fields of adapter_config.json, as they hold for one module, and two of what is beside it.

`layer_has_bias` says whether the layer has a bias, `tensor_shapes` what shapes the module's tensors
have, by name.
"""

# fmt: off
SAY_NOTHING = frozenset((
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "block_size_pattern",
    "boft_block_num", "boft_dropout", "corda_config", "d_initial", "ensure_weight_tying", "eps",
    "eva_config", "exclude_modules", "fan_in_fan_out", "feedforward_modules", "inference_mode",
    "init_ia3_weights", "init_weights", "lambda_pattern", "layer_has_bias", "layers_pattern",
    "layers_to_transform",
    "loftq_config", "lora_ga_config", "mask_type", "megatron_config", "megatron_core", "mini_r",
    "module_dropout", "modules_to_save", "n_frequency_pattern",
    "peft_type", "peft_version", "projection_prng_key", "qalora_group_size", "random_seed",
    "rank_dropout", "rank_dropout_scale", "rank_pattern", "revision", "runtime_config",
    "save_projection", "target_modules", "target_parameters", "task_type", "tensor_shapes",
    "trainable_token_indices", "use_effective_conv2d",
))
# fmt: on
"""Fields that do not change what trained tensors compute: where they are, how they trained."""


LONGEST = 100


def quoted(value: Any) -> str:
    """What a file of others says, without control characters, and not at any length."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def told_apart(one: Any, other: Any) -> tuple[str, str]:
    """Two values of a setting for a message that they differ: five digits, or more if need be.

    AdaLoRA's alpha of 2 is 2.0000066666666667 in PEFT, for rank 3.
    """
    short = [repr(float(f"{x:.5g}")) if isinstance(x, float) else repr(x) for x in (one, other)]
    return (short[0], short[1]) if short[0] != short[1] else (repr(one), repr(other))


class Peft(NamedTuple):
    """The adapter of one matrix.

    Lists and mappings among the settings are joined over all modules, and `{module}` in them stands
    for the name of the module. A field `r` may differ between modules if there is a
    `rank_pattern`, and so on (`lora_jax.interchange.peft_config`).
    """

    settings: Settings
    tensors: Mapping[str, Any]
    """By what follows the module's name in files: `lora_A.weight`."""
    shared: Mapping[str, Any] = MappingProxyType({})
    """What all modules share, by what follows `base_model.`: `vera_A`; only in what is read."""
    biases: bool = False
    """Whether PEFT also changes the bias of the layer, as a variant with `adapts_bias` does."""


Outputs = int | Literal["all"] | None
"""The axis of PEFT's tensor that runs over a layer's outputs, or "all": every output has all of it.

None: the method on some of the outputs is not the method on all of them with a part of its tensors.
"""


class Layout(NamedTuple):
    """What PEFT calls a factor, its shape there, and what each output of a layer has of it.

    The last two are for weights that torch joins, such as GPT-2's queries, keys and values.
    """

    name: str
    store: Callable[[Any], Any]
    read: Callable[[Any], Any]
    outputs: Outputs = None
    idle: float | None = None
    """The entry that, if all of an output have it, leaves the output as it is."""


Layouts = Mapping[str, Layout]
"""The layout of each factor, by its name here."""


def same(name: str, outputs: Outputs = None, idle: float | None = None) -> Layout:
    return Layout(name, lambda x: x, lambda x: x, outputs, idle)


def transposed(name: str, outputs: Outputs = None, idle: float | None = None) -> Layout:
    return Layout(name, lambda x: x.T, lambda x: x.T, outputs, idle)


def vector(name: str, outputs: Outputs = None, idle: float | None = None) -> Layout:
    """A vector, which PEFT stores as (n, 1); (1, n) is read as well."""
    return Layout(name, lambda x: x[:, None], _flat, outputs, idle)


def _flat(x: Any) -> Any:
    if sum(size != 1 for size in x.shape) > 1:
        raise ValueError("a vector has one axis that is longer than 1")
    return x.reshape(-1)


def stored(layouts: Layouts, factors: Mapping[str, Any]) -> dict[str, Any]:
    """Factors as PEFT's tensors; those without a layout are left out."""
    return {each.name: each.store(factors[n]) for n, each in layouts.items() if n in factors}


def loaded(layouts: Layouts, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's tensors as factors.

    Raises:
      ValueError: a tensor has no layout.
    """
    names = {each.name for each in layouts.values()}
    if other := sorted(tensors.keys() - names):
        raise ValueError(f"tensor '{other[0]}' is not one of {', '.join(sorted(names))}")
    return {
        ours: each.read(tensors[each.name])
        for ours, each in layouts.items()
        if each.name in tensors
    }


def _as_float(value: int, what: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{what} is too large for a float") from None


def settings_of(config: Settings, kind: str, **known: Any) -> dict[str, Any] | None:
    """The known fields of a config of PEFT; None if it has another `peft_type` than `kind`.

    Args:
      known: the fields that the method reads, with PEFT's defaults. A field's values are of the
        type of its default; a whole number is also a float. None allows any value.

    Raises:
      ValueError: a value of another type, or a field that is set and that nobody reads.
    """
    if config.get("peft_type") != kind:
        return None
    for name, value in config.items():
        if value and name not in known and name not in SAY_NOTHING:
            plain = name if name.isidentifier() and len(name) <= LONGEST else quoted(name)
            raise ValueError(f"{kind} with {plain}={quoted(value)} is not known here")
    found = {}
    for name, default in known.items():
        value = config.get(name, default)
        wanted = type(default)
        if wanted is float and type(value) is int:
            value = _as_float(value, f"{kind}: {name}")
        if default is not None and type(value) is not wanted:
            raise ValueError(
                f"{kind}: {name} must be of type {wanted.__name__}, got {quoted(value)}"
            )
        if isinstance(value, str) and len(value) > LONGEST:  # methods say what they do not know
            raise ValueError(f"{kind} with {name}={quoted(value)} is not known here")
        found[name] = value
    return found


class Config(NamedTuple):
    """What a method's settings are called in adapter_config.json."""

    kind: str
    """PEFT's `peft_type`."""
    fields: Mapping[str, tuple[str, Any]]
    """By the name there: the name of the method's own field, and PEFT's default."""
    also: Settings = MappingProxyType({})
    """What is written beside these."""
    ignored: Settings = MappingProxyType({})
    """What may be set and says nothing here, with PEFT's defaults."""

    def read(self, config: Settings) -> dict[str, Any] | None:
        """The method's own fields; None if the config has another `peft_type`."""
        defaults = {theirs: default for theirs, (_, default) in self.fields.items()}
        known = settings_of(config, self.kind, **defaults, **self.ignored)
        if known is None:
            return None
        return {ours: known[theirs] for theirs, (ours, _) in self.fields.items()}

    def written(self, variant: Any, constants: Mapping[str, Array]) -> dict[str, Any]:
        """The settings of one adapter: those of a study that its constants hold are taken there."""
        own = {ours: getattr(variant, ours) for ours, _ in self.fields.values()}
        if "dropout" in own:
            own["dropout"] = dropout_of(constants)
        if "alpha" in own:
            scale = float(constants["scale"])
            own["alpha"] = number(scale * variant.rank) if hasattr(variant, "rank") else scale
        said = {theirs: own[ours] for theirs, (ours, _) in self.fields.items()}
        return {"peft_type": self.kind, **said, **copy.deepcopy(dict(self.also))}


def dropout_of(constants: Mapping[str, Array]) -> float:
    """The probability of dropping an entry, of which the constant `keep` is the complement."""
    keep = constants.get("keep")
    return 0.0 if keep is None else float(np.round(1 - to_host(keep), 6))


def number(x: float) -> float | int:
    """A number as PEFT writes it: an integer if it is whole but for float32's rounding."""
    near = round(x)
    return near if math.isclose(x, near, rel_tol=1e-6) else x
