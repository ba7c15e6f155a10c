"""Write models as transformers stores them, and compare weights with published ones.

    params = merged_parts(trainable, frozen)     # or adapted.merge(trainable, frozen)
    export_model(params, config, "out", source=locate("minilm"), labels=("negative", "positive"))

Weights are safetensors, one file or several with an index. The table of places is the one that
parameters are read by (`tensors_of` inverts it).
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

from lora_jax.models import families
from lora_jax.models.parts.family import Piece, Place, layer_shape, tensors_of
from lora_jax.models.published.load import open_weights
from lora_jax.models.published.weight_files import INDEX, SINGLE, find_gguf, read_json
from lora_jax.partition import Parts, parts_of

SHARD_BYTES = 5_000_000_000
"""The most bytes of a file, unless another limit is given; a larger tensor has its own file."""
_SHARDS = "model-*-of-*.safetensors"
_GENERATION = "generation_config.json"
_GONE = ("_name_or_path", "auto_map", "dtype", "torch_dtype", "num_labels", "_num_labels")
"""Settings of a source that do not hold for what is made from it."""


def export_model(
    params: Any,
    config: Any,
    folder: str | Path,
    *,
    source: str | Path | None = None,
    labels: Sequence[str] = (),
    dtype: DTypeLike | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, float]:
    """Write config.json and safetensors, which transformers reads, and `load`.

    A classifier with pool="cls" becomes a complete BertForSequenceClassification (or Roberta's,
    DebertaV2's). With pool="mean", transformers has no class for the head: its BertModel reads the
    encoder, and the files also hold the classifier's two tensors. For its logits, multiply the mean
    of the last hidden states of the unmasked tokens by `classifier.weight.T`, and add
    `classifier.bias`.

    Args:
      params: the model's, an nnx.State, nested dicts or `Parts`, with adapters already merged.
      config: the model's own, such as a `BertConfig`, which says what the model is.
      folder: existing weight files in it are replaced, once all is written; not the source.
      source: where the model was loaded from; further settings are taken from its config.json, and
        a decoder's generation_config.json is copied.
      labels: the names of a classifier's classes, one for each output.
      dtype, shard_bytes: as for `write_weights`, whose result is returned.
    """
    parts, family = parts_of(params), families.family_of(config)
    encoder = family.kind == "encoder"
    needed = "classifier/bias" if encoder else "embedding/embedding"
    if needed not in parts.shapes:
        kind = "classifier" if encoder else "decoder"
        raise ValueError(f"the parameters have no {needed}: not those of a {kind}")
    places = {path: families.places(path, config) for path in parts.shapes}
    changes: dict[str, Any] = {"architectures": [family.architecture]}
    if encoder:
        changes = _head_settings(family.architecture, parts, labels)
    changes["torch_dtype"] = str(jnp.dtype(dtype or parts.shapes[needed].dtype))
    with replaced(folder, source) as temporary:
        write_config(temporary, config, source, changes)
        if not encoder and source is not None and (Path(source) / _GENERATION).is_file():
            shutil.copyfile(Path(source) / _GENERATION, temporary / _GENERATION)
        return write_weights(temporary, parts, places, dtype, shard_bytes)


def _head_settings(architecture: str, parts: Parts, labels: Sequence[str]) -> dict[str, Any]:
    """What a config.json says of a classifier's head."""
    (outputs,) = parts.shapes["classifier/bias"].shape
    names = list(labels) or [f"LABEL_{i}" for i in range(outputs)]
    if len(names) != outputs or len({*names}) != outputs:
        raise ValueError(f"labels {names}: expected {outputs} different names")
    is_first = "pooler/bias" in parts.shapes
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": "regression" if outputs == 1 else "single_label_classification",
        "architectures": [f"{architecture}{'ForSequenceClassification' if is_first else 'Model'}"],
        "pool": "cls" if is_first else "mean",
    }


def write_config(
    folder: Path, config: Any, source: str | Path | None, changes: Mapping[str, Any]
) -> None:
    """Write a config.json: the source's own, with what differs from it, and with `changes`.

    Args:
      config: the model's own, such as a `BertConfig`.
      source: the folder or GGUF file that the model was made from, if there is one. Settings that
        our models do not read are kept from its config.json.
    """
    content = config.to_json()
    if source is not None and find_gguf(source) is None:
        published = read_json(Path(source) / "config.json")
        before = type(config).from_json(published).to_json()
        differing = {name: value for name, value in content.items() if before[name] != value}
        kept = {name: value for name, value in published.items() if name not in _GONE}
        content = kept | differing
    text = json.dumps(content | dict(changes), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def changed_from(
    parts: Parts, paths: Sequence[str], config: Any, source: str | Path
) -> dict[str, float]:
    """How much parameters differ from the published ones that they were made from.

    Args:
      parts: the parameters; those at `paths` are compared, layer by layer.

    Returns:
      The Frobenius norm of the difference, relative to that of the published tensor, by the name of
      each tensor. Parameters that are not in `source` are left out.
    """
    stored = open_weights(source, config)
    wanted: dict[str, list[Place]] = {path: families.places(path, config) for path in paths}

    def pair(piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        own = np.asarray(parts.part(piece.path, piece.layer))
        return own, piece.place.cut(stored.read(piece.place.name))

    return {
        name: relative_error([pair(piece) for piece in pieces])
        for name, pieces in tensors_of(wanted).items()
        if name in stored
    }


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
      dtype: of all tensors; by default each parameter's own, as `parts.shapes` has it.

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
