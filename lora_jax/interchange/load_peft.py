"""Read an adapter from a Hugging Face PEFT folder, onto any function of the same weights."""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lora_jax.files.arrays import to_host
from lora_jax.interchange.matrices import depth, row, variant_at
from lora_jax.interchange.names import Names, Row, rows
from lora_jax.interchange.peft_config import of_module, of_tokens
from lora_jax.interchange.peft_folder import PeftFolder, Sorted, sort_tensors
from lora_jax.methods.peft_joined import PARTS, third
from lora_jax.methods.peft_lora import BIAS
from lora_jax.models.published.placed import Place
from lora_jax.partition import flatten, is_array
from lora_jax.peft_format import Peft, Settings
from lora_jax.transform.adapt import Adapted, adapt
from lora_jax.transform.adapted_weight import with_shared
from lora_jax.transform.discover import discover
from lora_jax.transform.placement import Frozen, Trainable, base_of
from lora_jax.transform.shared_arrays import shared_factors, with_shared_arrays
from lora_jax.transform.target_patterns import layers as some_layers
from lora_jax.variant import Factors, Variant


class Loaded(NamedTuple):
    """An adapted function with the adapter of a folder."""

    adapted: Adapted
    trainable: Trainable
    frozen: Frozen
    config: dict[str, Any]
    """The folder's adapter_config.json."""


def load_peft(
    folder: str | os.PathLike,
    variant_of: Callable[[Settings], Variant],
    names: Names,
    forward: Callable[..., Any],
    params: Any,
    *args: Any,
    **kwargs: Any,
) -> Loaded:
    """A function with the adapter of a folder that PEFT, or `save_peft`, has written.

    Nothing in the folder is trusted: names, shapes and sizes are compared with the config and the
    model before a tensor is read, and pickles are not read.

    Args:
      variant_of: the variant that PEFT's settings mean: `variants.from_peft`.
      names: what parameters are called in torch: `families.names_of(model.config)`, or
        `names_from_patterns`.
      forward, params, *args, **kwargs: as for `adapt` and `init`; params are the base that the
        adapter was trained on.

    Raises:
      FileNotFoundError: a missing file.
      ValueError: a file that is malformed, of a method that is not here, or of another model. The
        message names the file, and the module or tensor.
    """
    source = PeftFolder(folder)
    leaves = {path: x for path, x in flatten(params)[0].items() if is_array(x)}
    tied = [p for p, use in discover(forward, params, *args, **kwargs).items() if use.is_tied]
    found = sort_tensors(source, rows(names, leaves), tied)
    try:
        settings = _settings(found, source.config)
        targets = _targets(found, settings, variant_of, names)
        _refuse_tied(found, settings, tied)
        biases = _lora_biases(found)
    except ValueError as error:
        raise ValueError(f"{source.config_path}: {error}") from None
    beside = _each(found.full) + _each(biases)
    full = sorted({place.path for _, place in beside})
    adapted = adapt(forward, targets=targets, also_train=[_only(path) for path in full])
    key = jax.random.key(0)  # what is drawn is replaced
    try:
        shapes = {name: source.abstract(name) for name in source.names()}
        begun = jax.eval_shape(lambda: adapted.init(key, params, *args, **kwargs))
        fill = functools.partial(_filled, found, settings, names)
        jax.eval_shape(fill, *begun, shapes)  # compares all shapes, before anything is read
    except ValueError as error:
        raise ValueError(f"{source.path}, {source.base()}: {error}") from None
    read = {name: source.read(name) for name in shapes}
    begun = adapted.init(key, params, *args, **kwargs)
    try:
        _check_copies(found, leaves, names, read)
        _check_heads(found, read)
        with np.errstate(over="ignore"):  # what overflows is refused in the next line
            trainable, frozen = fill(*begun, read)
        _check_finite(trainable)
        _check_shared(found, trainable, frozen)
    except ValueError as error:
        raise ValueError(f"{source.path}, {source.base()}: {error}") from None
    return Loaded(adapted, trainable, frozen, source.config)


def _settings(found: Sorted, config: Settings) -> dict[str, dict[str, Any]]:
    """What a config says of each module with an adapter."""
    if config.get("trainable_token_indices") and not found.tokens:
        raise ValueError("trainable_token_indices names tokens, and no tensor has their rows")
    return {
        module: of_tokens(config, module)
        if module in found.tokens
        else {**of_module(config, module), "layer_has_bias": module in found.biases}
        for module in found.adapters
    }


def _refuse_tied(found: Sorted, settings: Mapping[str, Settings], tied: Collection[str]) -> None:
    """PEFT changes a table alone, not a head tied to it; its trainable tokens change both.

    A table that trains in full is written twice where the head trains with it.
    """
    kinds = {module: each["peft_type"] for module, each in settings.items()}
    alone = {module: kind for module, kind in kinds.items() if kind != "TRAINABLE_TOKENS"}
    alone |= dict.fromkeys(found.full.keys() - {*found.heads.values()}, "PEFT")
    for name, place in _each({**found.rows, **found.full}):
        if name in alone and place.path in tied:
            raise ValueError(
                f"'{place.path}' is also the head, which {alone[name]} leaves as it is"
            )


def _targets(
    found: Sorted,
    settings: Mapping[str, Settings],
    variant_of: Callable[[Settings], Variant],
    names: Names,
) -> dict[Any, Variant]:
    targets = {}
    for module, each in found.rows.items():
        variant = variant_of(settings[module])
        for place in each:
            pattern = _only(place.path)
            one = some_layers(pattern, place.layer) if names.stacked(place.path) else pattern
            targets[one] = variant
    return targets


def _check_copies(
    found: Sorted, leaves: Mapping[str, Any], names: Names, read: Mapping[str, Any]
) -> None:
    """Raise a ValueError if a weight of the base that PEFT has saved is not that of the params."""
    for name, place in _each(found.copies):
        mine, theirs = leaves[place.path], jnp.asarray(_cut(place.place, read[name]))
        mine = mine[place.layer] if names.stacked(place.path) else mine
        dtypes = mine.dtype, theirs.dtype  # one of them may be rounded
        if not any(jnp.array_equal(mine.astype(d), theirs.astype(d)) for d in dtypes):
            raise ValueError(f"tensor '{name}' is not the '{place.path}' of these params")


def _check_heads(found: Sorted, read: Mapping[str, Any]) -> None:
    """Raise a ValueError if a table that is also the head has other numbers there."""
    for name, table in found.heads.items():
        if not np.array_equal(read[name], read[table]):
            raise ValueError(
                f"tensor '{name}' is of no module, and not equal to '{table}', the table that is "
                "also the head"
            )


def _check_finite(trainable: Trainable) -> None:
    """Raise a ValueError if a number of a file was too large for the dtype that it has here."""
    for path, x in flatten(trainable)[0].items():
        if not jnp.isfinite(x).all():
            raise ValueError(f"{path}: a number is too large for {x.dtype}")


def _check_shared(found: Sorted, trainable: Trainable, frozen: Frozen) -> None:
    """Raise a ValueError if a file has something for all modules that no variant here shares."""
    known: set[str] = set()
    shapes = [shape for each in frozen.spec.adapted for shape in each.matrices]
    for variant, shared in frozen.shared_by_group(trainable).items() if found.shared else ():
        arrays = jax.tree.map(to_host, {**shared.constants, **shared.trainable})
        known |= variant.shared_to_peft(arrays, shapes).keys()
    if other := sorted(found.shared.keys() - known):
        raise ValueError(
            f"tensor '{found.shared[other[0]]}' is of no module, and nothing shares it"
        )


def _only(path: str) -> str:
    """A pattern of this path alone: without the look back, paths that end in it match, too."""
    return rf"(?<!/){re.escape(path)}"


def _peft(found: Sorted, settings: Mapping[str, Settings], place: Place, read: Any) -> Peft:
    """What a folder has of one parameter's layer."""
    module = place.name.removesuffix(".weight")
    own = {suffix: read[name] for suffix, name in found.adapters[module].items()}
    shared = {suffix: read[name] for suffix, name in found.shared.items()}
    peft = Peft(settings[module], own, shared)
    return peft if place.part is None else third(peft, place.part)


def _filled(
    found: Sorted,
    settings: Mapping[str, Settings],
    names: Names,
    trainable: Trainable,
    frozen: Frozen,
    read: Mapping[str, Any],
) -> tuple[Trainable, Frozen]:
    """What `init` gave, with the tensors of a folder in its place; works on shapes, too."""
    adapters, constants = dict(trainable["adapters"]), dict(frozen.constants)
    shared = frozen.shared_by(trainable)
    for placement in frozen.spec.adapted:
        path = placement.use.path
        begun = Factors(adapters[path], constants[path])
        base = base_of(placement, frozen.base[path])
        each = []
        for layer in range(depth(placement)):
            factors = row(placement, begun, layer)
            if (variant := variant_at(placement, layer)) is not None:
                place = names.place(path, layer)
                assert place is not None  # the adapter was found by its name
                peft = _peft(found, settings, place, read)
                like = row(placement, base, layer)
                common = shared[placement.variant]
                filled = variant.factors_from_peft(like, peft, with_shared(factors, common))
                both = zip(filled, common, strict=True)
                own = ({n: x for n, x in mine.items() if n not in out} for mine, out in both)
                factors = _like(factors, Factors(*own), place.name)
            each.append(factors)
        stack = placement.use.stack
        whole = jax.tree.map(lambda *x: jnp.stack(x), *each) if stack else each[0]
        adapters[path], constants[path] = whole
    params = dict(trainable["params"])
    for name, place in _each(found.full):
        tensor, mine = _cut(place.place, read[name]), params[place.path]
        if names.stacked(place.path):
            params[place.path] = mine.at[place.layer].set(_like(mine[0], tensor, place.path))
        else:
            params[place.path] = _like(mine, tensor, place.path)
    for module, place in _each(_lora_biases(found)):
        weight = found.rows[module][0]
        mine = params[place.path]
        scale = _one(constants[weight.path]["scale"], weight).astype(mine.dtype)
        bias = _cut(place.place, read[found.adapters[module][BIAS]])
        added = scale * jnp.asarray(bias, mine.dtype)
        where = mine.at[place.layer] if names.stacked(place.path) else mine.at[:]
        params[place.path] = where.add(added)
    groups, every = [], frozen.shared_by_group(trainable)
    for variant, paths in frozen.spec.groups().items():
        begun = {**every[variant].constants, **every[variant].trainable}
        place = next(r.place for each in found.rows.values() for r in each if r.path == paths[0])
        peft = _peft(found, settings, place, read)
        whole = _like(begun, variant.shared_from_peft(peft, begun), paths[0])
        groups.append(shared_factors(variant, whole))
    frozen = dataclasses.replace(frozen, constants=constants)
    return with_shared_arrays({"adapters": adapters, "params": params}, frozen, groups)


def _cut(place: Place, tensor: Any) -> Any:
    """One layer of a parameter as it is here, from torch's tensor; works on shapes, too."""
    tensor = tensor.T if place.transposed else tensor
    return tensor if place.part is None else jnp.split(tensor, PARTS, axis=-1)[place.part]


def _lora_biases(found: Sorted) -> dict[str, list[Row]]:
    """The biases of the layers whose adapters have one of their own, by module."""
    modules = [module for module, each in found.adapters.items() if BIAS in each]
    if without := [module for module in modules if module not in found.biases]:
        raise ValueError(f"'{without[0]}' has a lora_bias, and the model has no bias there")
    return {module: found.biases[module] for module in modules}


def _each(named: Mapping[str, list[Row]]) -> list[tuple[str, Row]]:
    return [(name, one) for name, several in named.items() for one in several]


def _one(values: Any, place: Row) -> Any:
    """The number of one layer."""
    return values[place.layer] if values.ndim else values


def _like(mine: Any, theirs: Any, path: str) -> Any:
    """Arrays of a file in the dtypes of those that `init` gave, which have the same shapes."""
    found, wanted = (
        {jax.tree_util.keystr(keys): tuple(x.shape) for keys, x in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (theirs, mine))
    )
    for name in {**wanted, **found}:
        if found.get(name) != wanted.get(name):
            what = f"{path}{name}: the file has {found.get(name)}"
            raise ValueError(f"{what}, this model and the config ask for {wanted.get(name)}")
    return jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), theirs, mine)
