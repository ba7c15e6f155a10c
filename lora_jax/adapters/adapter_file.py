"""One adapter in one file: what was trained, and the constants that it was trained with."""

import dataclasses
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax import Array

from lora_jax.adapters.base_digest import base_digests, require_base
from lora_jax.files.tree_file import load_tree, save_tree
from lora_jax.partition import flatten
from lora_jax.transform.placement import Frozen, Trainable, warn_of_doubts

BASE = "lora_jax.base"
"""Under which the digests of the base are among a file's JSON values."""


def save_adapter(
    path: str | os.PathLike,
    trainable: Trainable,
    frozen: Frozen,
    meta: Mapping[str, Any] | None = None,
) -> Path:
    """Write trainables and the adapters' constants (see `save_tree`); the base is not in the file.

    The constants go with it because they may be random (VeRA, LoRA-FA) or depend on a decomposition
    (PiSSA), which another machine or version need not repeat. Of the base there are digests
    (`base_digests`), by which another one is told from it.
    Warns where training seems to have forgotten something (`update`).
    """
    warn_of_doubts(trainable["adapters"], frozen)
    values = {**(meta or {}), BASE: base_digests(frozen)}
    return save_tree(path, _tree(trainable, frozen), values)


def load_adapter(
    path: str | os.PathLike, trainable: Trainable, frozen: Frozen, *, any_base: bool = False
) -> tuple[Trainable, Frozen, dict[str, Any]]:
    """The trainables of `save_adapter`, a Frozen with the saved constants, and the JSON values.

    Args:
      trainable: what `init` gave, for the form.
      frozen: what `init` gave, which holds the base.
      any_base: whether another base than that which it was trained on will do. Files of earlier
        versions do not say which one that was, and are loaded onto any.

    Raises:
      ValueError: the file has other adapters, or of other shapes, than `frozen` describes.
      OtherBaseError: it was trained on another base (a ValueError, too).
    """
    tree, meta = _load(path)
    wanted, _ = flatten(_tree(trainable, frozen))
    found, _ = flatten(tree)
    for name in [*wanted, *found]:
        there, here = (each.get(name) for each in (found, wanted))
        if there is None or here is None or there.shape != here.shape:
            shapes = ["nothing" if each is None else list(each.shape) for each in (there, here)]
            raise ValueError(f"{path} has {shapes[0]} for '{name}', expected {shapes[1]}")
        _check_kind(path, name, there, here)
    _check_base(path, meta, tree, trainable, frozen, any_base)
    shared = tuple(tree["shared"].get(str(n), {}) for n in range(len(frozen.shared)))
    restored = dataclasses.replace(frozen, constants=tree["constants"], shared=shared)
    values = {name: each for name, each in meta.items() if name != BASE}
    return {"adapters": tree["adapters"], "params": tree["params"]}, restored, values


def start_from(
    path: str | os.PathLike, trainable: Trainable, frozen: Frozen, *, any_base: bool = False
) -> tuple[Trainable, Frozen]:
    """A run's beginning, from the adapter that another run has saved (MNLI's, say).

    The adapters take the place of those of `init`, and with them the matrices among their constants
    (what was drawn, as VeRA's projections); numbers, as the keep probability, stay those of
    `frozen`. A parameter that trains in full is taken where path and shape agree. A head for other
    classes, whose shape differs in its last axis alone, begins anew, with a warning. Of one that
    this run does not train there is a warning, too: its base's is used.

    Args:
      any_base: as of `load_adapter`.

    Raises:
      ValueError: the file has other adapters, or of other shapes, or with another scale; or a
        parameter that trains in full differs in more than its last axis.
      OtherBaseError: it was trained on another base (a ValueError, too).
    """
    tree, meta = _load(path)
    wanted, found = (flatten(each["adapters"])[0] for each in (trainable, tree))
    for name in [*wanted, *found]:
        there, here = (each[name].shape if name in each else None for each in (found, wanted))
        if there != here:
            shapes = ["nothing" if each is None else list(each) for each in (there, here)]
            raise ValueError(
                f"{path} has {shapes[0]} for the adapter '{name}', expected {shapes[1]}"
            )
    _check_base(path, meta, tree, trainable, frozen, any_base)
    stacks = {each.use.path: len(each.use.stack) for each in frozen.spec.adapted}
    constants = {}
    for weight, mine in frozen.constants.items():
        theirs = tree["constants"].get(weight, {})
        if "scale" in mine and not jnp.array_equal(mine["scale"], theirs.get("scale")):
            raise ValueError(f"{path}: '{weight}' was trained with another scale; set its alpha")
        constants[weight] = _with_matrices(path, mine, theirs, stacks[weight])
    shared = tuple(
        _with_matrices(path, mine, tree["shared"].get(str(number), {}), 0)
        for number, mine in enumerate(frozen.shared)
    )
    params, anew = _with_params(path, trainable["params"], tree["params"])
    if anew:
        warnings.warn(
            f"{path} has a head for other classes, which begins anew: {'; '.join(anew)}",
            stacklevel=2,
        )
    if dropped := [name for name in tree["params"] if name not in params]:
        warnings.warn(
            f"{path} was trained with its own '{dropped[0]}', which this run does not train, "
            "and so begins without; name it in also_train",
            stacklevel=2,
        )
    begun = {"adapters": tree["adapters"], "params": params}
    return begun, dataclasses.replace(frozen, constants=constants, shared=shared)


def _check_base(
    path: str | os.PathLike,
    meta: Mapping[str, Any],
    tree: Mapping[str, Any],
    trainable: Trainable,
    frozen: Frozen,
    any_base: bool,
) -> None:
    if not any_base and meta.get(BASE):
        trained = {*tree["params"], *trainable["params"]}
        require_base(meta[BASE], frozen, trained, str(path))


def _with_params(
    path: str | os.PathLike, mine: Mapping[str, Array], theirs: Mapping[str, Array]
) -> tuple[dict[str, Array], list[str]]:
    """What trains in full, as another run has left it; and what begins anew, with both shapes."""
    found, anew = dict(mine), []
    for name in sorted(mine.keys() & theirs.keys()):
        there, here = theirs[name], mine[name]
        _check_kind(path, name, there, here)
        if there.shape == here.shape:
            found[name] = there
        elif there.ndim == here.ndim and there.shape[:-1] == here.shape[:-1]:
            anew.append(f"{list(there.shape)} for '{name}', here {list(here.shape)}")
        else:
            shapes = f"{list(there.shape)} for '{name}', expected {list(here.shape)}"
            raise ValueError(f"{path} has {shapes}")
    return found, anew


def _with_matrices(
    path: str | os.PathLike, mine: dict[str, Array], theirs: dict[str, Array], stack: int
) -> dict[str, Array]:
    """Constants whose matrices, below so many stacked axes, are another's, of the same shapes."""
    found = dict(mine)
    for name, each in mine.items():
        if each.ndim - stack >= 2 and name in theirs:
            found[name] = theirs[name]
            if found[name].shape != each.shape:
                shapes = f"{list(found[name].shape)} for the constant '{name}'"
                raise ValueError(f"{path} has {shapes}, expected {list(each.shape)}")
            _check_kind(path, name, found[name], each)
    return found


def _load(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """A tree of the form that `_tree` gives one, and the JSON values with it.

    ValueError for another tree: arrays by weight and name are constants, all else is by path.
    """
    tree, meta = load_tree(path)
    kept = ("constants", "shared")
    if (
        not isinstance(tree, dict)
        or not {"adapters", "params", *kept} <= tree.keys()
        or not all(isinstance(each, dict) for each in tree.values())
        or not all(isinstance(each, dict) for part in kept for each in tree[part].values())
    ):
        raise ValueError(f"{path} was not written by lora_jax.save_adapter")
    return tree, meta


def _check_kind(path: str | os.PathLike, name: str, there: Any, here: Any) -> None:
    """ValueError where one is of floats and the other of something else."""
    if jnp.issubdtype(there.dtype, jnp.floating) != jnp.issubdtype(here.dtype, jnp.floating):
        raise ValueError(f"{path} has {there.dtype} for '{name}', expected {here.dtype}")


def _tree(trainable: Trainable, frozen: Frozen) -> dict[str, Any]:
    shared = {str(number): each for number, each in enumerate(frozen.shared) if each}
    return {**trainable, "constants": frozen.constants, "shared": shared}
