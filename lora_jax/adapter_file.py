"""One adapter in one file: what was trained, and the constants that it was trained with."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax import Array

from lora_jax.base_digest import base_digests, require_base
from lora_jax.frozen import Frozen, Trainable, warn_of_doubts
from lora_jax.partition import flatten
from lora_jax.tree_file import load_tree, save_tree

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
    tree, meta = load_tree(path)
    wanted, _ = flatten(_tree(trainable, frozen))
    found, _ = flatten(tree)
    for name in [*wanted, *found]:
        there, here = (each.get(name) for each in (found, wanted))
        if there is None or here is None or there.shape != here.shape:
            shapes = ["nothing" if each is None else list(each.shape) for each in (there, here)]
            raise ValueError(f"{path} has {shapes[0]} for '{name}', expected {shapes[1]}")
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
    `frozen`. A parameter that trains in full is taken where path and shape agree: a head for other
    classes begins anew.

    Args:
      any_base: as of `load_adapter`.

    Raises:
      ValueError: the file has other adapters, or of other shapes, or with another scale.
      OtherBaseError: it was trained on another base (a ValueError, too).
    """
    tree, meta = load_tree(path)
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
        constants[weight] = _with_matrices(mine, theirs, stacks[weight])
    shared = tuple(
        _with_matrices(mine, tree["shared"].get(str(number), {}), 0)
        for number, mine in enumerate(frozen.shared)
    )
    params = {
        name: theirs if (theirs := tree["params"].get(name, mine)).shape == mine.shape else mine
        for name, mine in trainable["params"].items()
    }
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


def _with_matrices(
    mine: dict[str, Array], theirs: dict[str, Array], stack: int
) -> dict[str, Array]:
    """Constants whose matrices, below so many stacked axes, are another's."""
    return {
        name: theirs.get(name, each) if each.ndim - stack >= 2 else each
        for name, each in mine.items()
    }


def _tree(trainable: Trainable, frozen: Frozen) -> dict[str, Any]:
    shared = {str(number): each for number, each in enumerate(frozen.shared) if each}
    return {**trainable, "constants": frozen.constants, "shared": shared}
