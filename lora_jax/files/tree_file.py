"""A tree of arrays in one safetensors file; every bit is verified when it is read."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from lora_jax.files import json_text
from lora_jax.files.arrays import array_digest, is_key, to_host, type_name
from lora_jax.files.atomic import write_atomically
from lora_jax.files.json_text import canonical, config_digest
from lora_jax.files.safetensors_bytes import SafetensorsBytes
from lora_jax.messages import first_line


def save_tree(path: str | os.PathLike, tree: Any, meta: Mapping[str, Any] | None = None) -> Path:
    """Write nested dicts of arrays and JSON values into one safetensors file, atomically.

    Tensors are named by their keys, `adapters/<path>/<name>`. A path that does not end in
    .safetensors is a folder; the file is then `adapter.safetensors` in it. Returns the file's path.
    With several processes, which may share the arrays, every one must call this; the first writes.
    """
    path = _file(path)
    arrays: dict[str, np.ndarray] = {}

    def name(node: Any, where: str) -> Any:
        if isinstance(node, Mapping):
            return {
                key: name(item, f"{where}/{key}" if where else key) for key, item in node.items()
            }
        if not isinstance(node, jax.Array | np.ndarray) or is_key(node) or where in arrays:
            raise ValueError(f"{where!r} cannot be saved: expected one array of that name")
        arrays[where] = np.ascontiguousarray(to_host(node)).reshape(node.shape)
        return where

    body = {"tree": name(tree, ""), "meta": dict(meta or {})}
    body["leaves"] = {
        name: [type_name(array), array_digest(array)] for name, array in arrays.items()
    }
    # One entry only: safetensors writes several in no fixed order, and equal trees must give equal
    # files.
    sealed = {"body": body, "sha256": config_digest(body)}
    data = safetensors.numpy.save(arrays, {"lora_jax": canonical(sealed)})
    if jax.process_index() == 0:
        write_atomically(path, data)
    return path


def load_tree(path: str | os.PathLike) -> tuple[Any, dict[str, Any]]:
    """The tree and the JSON values that `save_tree` wrote; ValueError if any bit has changed."""
    path = _file(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no adapter {path}")
    file = SafetensorsBytes(path)
    header, arrays = file.metadata(), {name: file.read(name) for name in file.names()}
    try:
        sealed = json_text.loads(header["lora_jax"], "its header") if "lora_jax" in header else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {first_line(error)}") from error
    if not isinstance(sealed, dict) or not {"body", "sha256"} <= sealed.keys():
        raise ValueError(f"{path} was not written by lora_jax.save_tree")
    body = sealed["body"]
    if config_digest(body) != sealed["sha256"] or not _describes(body, arrays):
        raise ValueError(f"{path} is damaged: its header differs from what was saved")
    for name, saved in body["leaves"].items():
        if [type_name(arrays[name]), array_digest(arrays[name])] != saved:
            raise ValueError(f"{path} is damaged: {name} differs from what was saved")
    return jax.tree.map(lambda name: jnp.array(arrays[name]), body["tree"]), body["meta"]


def _describes(body: Any, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether `body` is what `save_tree` writes for these arrays; it may be of any type."""
    if not isinstance(body, dict) or not {"tree", "meta", "leaves"} <= body.keys():
        return False
    leaves = body["leaves"]
    if not isinstance(leaves, dict) or not isinstance(body["meta"], dict):
        return False
    named = list(_names(body["tree"], ""))
    return arrays.keys() == leaves.keys() == set(named) and len(named) == len(leaves)


def _names(node: Any, where: str) -> Iterator[Any]:
    """The names of a tree's leaves; None for a leaf that is not named by its place."""
    if isinstance(node, dict):
        for key, item in node.items():
            yield from _names(item, f"{where}/{key}" if where else key)
    else:
        yield node if node == where else None


def _file(path: str | os.PathLike) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / "adapter.safetensors"
