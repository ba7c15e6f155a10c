"""One adapter in one file: what was trained, and the constants that it was trained with."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.frozen import Frozen, Trainable
from lora_jax.partition import flatten
from lora_jax.tree_file import load_tree, save_tree


def save_adapter(
    path: str | os.PathLike,
    trainable: Trainable,
    frozen: Frozen,
    meta: Mapping[str, Any] | None = None,
) -> Path:
    """Write trainables and the adapters' constants (see `save_tree`); the base is not in the file.

    The constants go with it because they may be random (VeRA, LoRA-FA) or depend on a decomposition
    (PiSSA), which another machine or version need not repeat.
    """
    return save_tree(path, _tree(trainable, frozen), meta)


def load_adapter(
    path: str | os.PathLike, trainable: Trainable, frozen: Frozen
) -> tuple[Trainable, Frozen, dict[str, Any]]:
    """The trainables of `save_adapter`, a Frozen with the saved constants, and the JSON values.

    Args:
      trainable: what `init` gave, for the form.
      frozen: what `init` gave, which holds the base.

    Raises:
      ValueError: the file has other adapters, or of other shapes, than `frozen` describes.
    """
    tree, meta = load_tree(path)
    wanted, _ = flatten(_tree(trainable, frozen))
    found, _ = flatten(tree)
    for name in [*wanted, *found]:
        there, here = (each.get(name) for each in (found, wanted))
        if there is None or here is None or there.shape != here.shape:
            shapes = ["nothing" if each is None else list(each.shape) for each in (there, here)]
            raise ValueError(f"{path} has {shapes[0]} for '{name}', expected {shapes[1]}")
    shared = tuple(tree["shared"].get(str(n), {}) for n in range(len(frozen.shared)))
    restored = dataclasses.replace(frozen, constants=tree["constants"], shared=shared)
    return {"adapters": tree["adapters"], "params": tree["params"]}, restored, meta


def _tree(trainable: Trainable, frozen: Frozen) -> dict[str, Any]:
    shared = {str(number): each for number, each in enumerate(frozen.shared) if each}
    return {**trainable, "constants": frozen.constants, "shared": shared}
