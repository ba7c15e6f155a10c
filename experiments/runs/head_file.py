"""The head of a classifier beside a PEFT folder, where no class of transformers has such a head."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax import Array
from safetensors.numpy import save

from lora_jax.files.arrays import to_host
from lora_jax.files.atomic import write_atomically
from lora_jax.files.safetensors_bytes import SafetensorsBytes
from lora_jax.interchange.load_peft import Loaded

HEAD_FILE = "head.safetensors"
_KERNEL, _BIAS = "classifier/kernel", "classifier/bias"
_NAMES = {_KERNEL: "classifier.weight", _BIAS: "classifier.bias"}


def save_head(head: dict[str, Array], path: Path) -> None:
    """Write a linear layer's parameters, given by path, as torch has them."""
    kernel, bias = (to_host(head[name]) for name in _NAMES)
    tensors = {_NAMES[_KERNEL]: np.ascontiguousarray(kernel.T), _NAMES[_BIAS]: bias}
    write_atomically(path, save(tensors, metadata={"format": "pt"}))


def with_head(found: Loaded, path: Path) -> Loaded:
    """The adapter with the head of a file of `save_head`, which then trains in full.

    Raises:
      ValueError: the file is malformed, or its head has another shape than the model's.
    """
    file, frozen = SafetensorsBytes(path), found.frozen
    stored = {each.use.path: each.use for each in frozen.spec.placements}  # perhaps quantised
    params = dict(found.trainable["params"])
    for name, tensor in _NAMES.items():
        mine = params.get(name, stored.get(name, frozen.base.get(name)))
        if tensor not in file.names() or mine is None:
            raise ValueError(f"{path}: no tensor '{tensor}', or no such head in the model")
        value = file.read(tensor)
        value = value.T if name == _KERNEL else value
        if value.shape != mine.shape or not np.isfinite(value).all():
            raise ValueError(
                f"{path}: '{tensor}' has the shape {value.shape} or holds NaN, and the model's "
                f"'{name}' is of {mine.shape}"
            )
        params[name] = jnp.asarray(value, mine.dtype)
    rest = tuple(each for each in frozen.spec.placements if each.use.path not in _NAMES)
    frozen = dataclasses.replace(
        frozen,
        base={name: x for name, x in frozen.base.items() if name not in _NAMES},
        spec=dataclasses.replace(frozen.spec, placements=rest),
    )
    trainable = {**found.trainable, "params": dict(sorted(params.items()))}
    return found._replace(trainable=trainable, frozen=frozen)
