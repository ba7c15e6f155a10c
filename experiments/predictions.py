"""What the saved adapter of a run says of every example, beside the labels: `predictions.npz`.

The outputs of each part are under its name (`validation`, `test`, ...) and its labels under
`<name>/label`, in the order of the data, so that any two runs can be compared pair by pair later.
"""

import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from lora_jax import memory, records

NAME = "predictions.npz"

_DAMAGED = (ValueError, KeyError, EOFError, TypeError, NotImplementedError)
_DAMAGED += (zipfile.BadZipFile, zlib.error)
"""What NumPy raises for a file that is none of its archives, or a part of one."""


class Predictions(NamedTuple):
    """Of one part: outputs (n, classes or 1), and labels (n,) where it has them."""

    outputs: np.ndarray
    labels: np.ndarray | None


def write(folder: Path, predictions: Mapping[str, Predictions]) -> None:
    """Write the file atomically."""
    arrays: dict[str, Any] = {}
    for name, each in predictions.items():
        arrays[name] = each.outputs
        if each.labels is not None:
            arrays[f"{name}/label"] = each.labels
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    records.write_atomically(folder / NAME, content.getvalue())


def read(folder: Path) -> dict[str, Predictions]:
    """All parts that a run's folder has; none where it has no such file.

    Raises:
      ValueError: a file that is damaged, or that is no file of predictions.
    """
    path = folder / NAME
    if not path.exists():
        return {}
    try:
        with path.open("rb") as file:
            loaded = np.load(file)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("no archive of arrays")
            _check_sizes(loaded.zip)
            return _parts({name: loaded[name] for name in loaded})
    except _DAMAGED as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path} is damaged ({why}): train this run anew, in another folder, or delete the "
            "file, and what needs predictions is not measured of it"
        ) from error


def _check_sizes(archive: Any) -> None:
    """ValueError for arrays of other sizes than declared, or that memory does not hold.

    NumPy makes an array before it reads what is to fill it, and a few packed bytes may unpack to
    any number.
    """
    entries = archive.infolist()
    total, room = sum(entry.file_size for entry in entries), memory.host_memory()
    if room is not None and total > room:
        raise ValueError(
            f"unpacked it has {memory.size(total)}, and {memory.size(room)} of memory are available"
        )
    for entry in entries:
        with archive.open(entry) as file:
            shape, dtype = _header(file)
            stored = entry.file_size - file.tell()
        if min(shape, default=0) < 0 or stored != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"'{entry.filename}' of shape {shape} has {stored:,} bytes")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and dtype that an array's beginning declares."""
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if (version := np.lib.format.read_magic(file)) not in read:
        raise ValueError(f"an array in NumPy's format {version}")
    shape, _, dtype = read[version](file)
    return shape, dtype


def _parts(arrays: Mapping[str, np.ndarray]) -> dict[str, Predictions]:
    found = {}
    for name, outputs in arrays.items():
        if name.endswith("/label"):
            continue
        labels = arrays.get(f"{name}/label")
        if outputs.ndim != 2 or (labels is not None and labels.shape != outputs.shape[:1]):
            shapes = f"{outputs.shape} and labels {None if labels is None else labels.shape}"
            raise ValueError(f"'{name}' has outputs of shape {shapes}")
        found[name] = Predictions(outputs, labels)
    return found
