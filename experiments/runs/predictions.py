"""Store the outputs of a run's saved adapter for every example, with labels: `predictions.npz`.

The outputs of each part are under its name (`validation`, `test`, ...), and its labels under
`<name>/label`. Both are in the order of the data, so that two runs can be compared by example.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lora_jax.files import archives
from lora_jax.files.atomic import write_atomically
from lora_jax.records.packed import PREDICTIONS, Pack

NAME = "predictions.npz"


class Predictions(NamedTuple):
    """The outputs of one part, (n, classes or 1), and its labels, (n,), or None."""

    outputs: np.ndarray
    labels: np.ndarray | None


def write(folder: Path, predictions: Mapping[str, Predictions], name: str = NAME) -> None:
    """Write the predictions of all parts into a folder's file of this name, atomically."""
    arrays: dict[str, np.ndarray] = {}
    for part, each in predictions.items():
        arrays[part] = each.outputs
        if each.labels is not None:
            arrays[f"{part}/label"] = each.labels
    write_arrays(folder / name, arrays)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a .npz file atomically; the same arrays give the same bytes."""
    content = io.BytesIO()
    np.savez_compressed(content, **dict[str, Any](arrays))
    write_atomically(path, content.getvalue())


def read(folder: Path) -> dict[str, Predictions]:
    """The predictions in a run's folder by part; empty if it has no such file.

    Raises:
      ValueError: the file is damaged, or is not a file of predictions.
    """
    path = folder / NAME
    if not path.exists():
        return {}
    try:
        return parts_of(archives.read_arrays(path))
    except ValueError as error:
        why = " ".join(str(error).split())
        raise ValueError(
            f"{path} is damaged ({why}): train this run anew, in another folder, or delete the "
            "file, and what needs predictions is not measured of it"
        ) from error


def read_packed(pack: Pack, run: str) -> dict[str, Predictions]:
    """The predictions of a packed run by part; empty if it had none.

    Raises:
      ValueError: as `read`.
    """
    arrays = pack.arrays(run)
    try:
        return parts_of(arrays)
    except ValueError as error:
        raise ValueError(f"{pack.folder / PREDICTIONS}, run {run}: {error}") from error


def parts_of(arrays: Mapping[str, np.ndarray]) -> dict[str, Predictions]:
    """The predictions in the arrays of a file, by part.

    Raises:
      ValueError: the arrays are not predictions.
    """
    found = {}
    for name, outputs in arrays.items():
        if name.endswith("/label"):
            continue
        labels = arrays.get(f"{name}/label")
        if outputs.ndim != 2 or (labels is not None and labels.shape != outputs.shape[:1]):
            shapes = f"{outputs.shape} and labels {None if labels is None else labels.shape}"
            raise ValueError(f"'{name}' has outputs of shape {shapes}")
        if outputs.dtype.kind != "f":
            raise ValueError(f"'{name}' has outputs of {outputs.dtype}")
        found[name] = Predictions(outputs, labels)
    return found
