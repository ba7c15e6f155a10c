"""Weights written as transformers stores them: safetensors, one file or several with an index.

The table of places is the one that parameters are read by (`placed.tensors_of` inverts it).
"""

import contextlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from lora_jax.models.published.placed import Piece, Place, layer_shape, tensors_of
from lora_jax.models.published.weight_files import INDEX, SINGLE
from lora_jax.partition import Parts

SHARD_BYTES = 5_000_000_000
"""The most bytes of a file, unless another limit is given; a larger tensor has its own file."""
_SHARDS = "model-*-of-*.safetensors"


@contextlib.contextmanager
def replaced(folder: str | Path, source: str | Path | None = None) -> Iterator[Path]:
    """Give a temporary folder inside `folder`, to which its files move if the code inside succeeds.

    They replace files of their names, and all weights. Nothing in `folder` changes before.

    Args:
      folder: of a model; it is made if it is not there.
      source: the model that the files are made from.

    Raises:
      ValueError: `folder` is the source, which would be lost.
    """
    folder = Path(folder)
    if source is not None and Path(source).resolve() == folder.resolve():
        raise ValueError(f"{folder} is the model that this is made from: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{secrets.token_hex(8)}.tmp"
    temporary.mkdir()
    try:
        shutil.copymode(folder, temporary)
        yield temporary
        made = [path.name for path in temporary.iterdir()]
        for name in made:
            os.replace(temporary / name, folder / name)
        for old in (folder / SINGLE, folder / INDEX, *folder.glob(_SHARDS)):
            if old.name not in made:
                old.unlink(missing_ok=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_weights(
    folder: Path,
    parts: Parts,
    places: Mapping[str, Sequence[Place]],
    dtype: DTypeLike | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, float]:
    """Write parameters as the tensors that they are read from, into a folder without weights.

    Only the tensors of one file, of `shard_bytes`, are made and held at a time.

    Args:
      dtype: of all tensors; by default each parameter's own, as `document.shapes` has it.

    Returns:
      What rounding changed, by the name of each tensor that was rounded: the Frobenius norm of the
      change, relative to that of the tensor.

    Raises:
      ValueError: a number is beyond the range of another `dtype`, or NaN.
    """
    kinds = {path: jnp.dtype(dtype or each.dtype) for path, each in parts.shapes.items()}
    shards = _shards(parts, tensors_of(places), kinds, shard_bytes)
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    files = files if len(shards) > 1 else [SINGLE]
    where, total, rounding = {}, 0, {}
    for file, shard in zip(files, shards, strict=True):
        tensors = {}
        for name, pieces in shard.items():
            exact = tensor(parts, pieces)
            tensors[name] = _cast(name, exact, kinds[pieces[0].path])
            if tensors[name].dtype != exact.dtype:
                rounding[name] = relative_error([(tensors[name], exact)])
        save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(folder.stat().st_mode & 0o666)  # safetensors lets only the owner read
        where |= dict.fromkeys(tensors, file)
        total += sum(each.nbytes for each in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return rounding


def all_tensors(parts: Parts, places: Mapping[str, Sequence[Place]]) -> dict[str, np.ndarray]:
    """The tensors that `write_weights` would write, by name."""
    return {name: tensor(parts, pieces) for name, pieces in tensors_of(places).items()}


def tensor(parts: Parts, pieces: Sequence[Piece]) -> np.ndarray:
    """A tensor in the layout of its file, joined of what it holds."""
    arrays = []
    for path, layer, place in pieces:
        array = np.asarray(parts.part(path, layer))
        arrays.append(array.T if place.transposed else array)
    return np.ascontiguousarray(arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1))


def relative_error(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The Frobenius norm of the difference of arrays, relative to that of the second ones.

    Args:
      pairs: the parts of one matrix: an array, and what it should be.
    """
    exact = [(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs]
    change, size = sum(((a - b) ** 2).sum() for a, b in exact), sum((b**2).sum() for _, b in exact)
    return math.sqrt(change / size) if size else math.sqrt(change)


def _cast(name: str, exact: np.ndarray, dtype: Any) -> np.ndarray:
    with np.errstate(over="ignore"):  # it is reported below
        cast = exact.astype(dtype)
    if cast.dtype != exact.dtype and not np.isfinite(cast).all():
        if np.isnan(exact).any():
            raise ValueError(f"tensor '{name}' holds NaN")
        largest = float(np.abs(exact).max())
        raise ValueError(f"tensor '{name}' holds {largest:.4g}, which is too large for {dtype}")
    return cast


def _shards(
    parts: Parts, tensors: Mapping[str, list[Piece]], kinds: Mapping[str, Any], shard_bytes: int
) -> list[dict[str, list[Piece]]]:
    """The tensors of each file: as many as fit, in the order of the layers."""
    shards: list[dict[str, list[Piece]]] = [{}]
    filled = 0
    for name, pieces in tensors.items():
        size = sum(
            math.prod(layer_shape(piece.path, parts.shapes[piece.path].shape))
            * kinds[piece.path].itemsize
            for piece in pieces
        )
        if shards[-1] and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = pieces
        filled += size
    return shards
