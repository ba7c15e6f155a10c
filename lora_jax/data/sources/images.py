"""Images, or other arrays, with labels: MNIST's IDX files, a folder for each class, or .npz."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_jax.data.examples import ArrayExamples
from lora_jax.data.task import Task
from lora_jax.files.archives import read_arrays, read_gzip
from lora_jax.messages import first_line, require_known

IDX_FOLDER = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package dataset-fashion-mnist has its files."""
NAMES = {
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
}
"""The classes of a data set whose files only number them."""
_IDX = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
"""The types of IDX files, by the third byte."""
TAKEN = ("label", "labels", "weight", "input_ids")
"""Names that batches use for something else."""
_Part = tuple[dict[str, np.ndarray], Any]
"""Arrays, and the label of each row: names, or an array of numbers."""


def load(
    name: str,
    source: str,
    folder: str | Path | None = None,
    files: Mapping[str, Any] | None = None,
    validation: int = 0,
    classes: Sequence[str] = (),
) -> Task:
    """Load images or other arrays with labels.

    Args:
      name: any name; `fashion_mnist` gives the ten classes their names.
      source: `idx` (`train-images-idx3-ubyte` and so on, perhaps with .gz; without a folder,
        those of Debian's package dataset-fashion-mnist), `images` (a folder with a folder for each
        class, and images of one size in these), or `npz` (files with any arrays of as many rows as
        their `labels`, which are numbers: whole ones are classes).
      folder: where the files are.
      files: the paths of `train` and `validation` of `npz`, and of `images` that have two parts;
        relative ones from the folder.
      validation: hold out this many examples of train instead of using the validation part.
      classes: take the examples of these classes alone.

    Raises:
      ValueError, FileNotFoundError: one line that says what is wrong.
    """
    require_known(source, SOURCES, f"unknown data.source '{source}'")
    given = {key: each for key, each in (files or {}).items() if each}
    read = SOURCES[source](Path(folder or ""), given)
    numbers = source != "images" and name in NAMES
    parts = {part: _named(each, NAMES[name]) if numbers else each for part, each in read.items()}
    labels = parts["train"][1]
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "f":
        names = None
    else:
        names = tuple(classes) or tuple(sorted(set(labels), key=_by_number))
        for each in classes:
            require_known(each, {*labels}, f"data.classes: no example has the class '{each}'")
    made = {part: _examples(f"{name}/{part}", *each, names) for part, each in parts.items()}
    if "validation" not in made and not validation:
        raise ValueError("nothing to score on: give a validation part, or data.validation")
    metrics = ("accuracy", "f1") if names else ("pearson", "spearman")
    task = Task(name, made["train"], made.get("validation", made["train"]), names, metrics=metrics)
    return task.hold_out(validation) if validation else task


def _by_number(label: str) -> tuple[float, str]:
    return (float(label) if label.isdecimal() else math.inf), label


def _named(part: _Part, names: Sequence[str]) -> _Part:
    """A part whose labels are numbers of these names."""
    arrays, labels = part
    if wrong := [each for each in labels if not each.isdecimal() or int(each) >= len(names)]:
        raise ValueError(f"label {wrong[0]} is not one of 0 to {len(names) - 1}")
    return arrays, [names[int(each)] for each in labels]


def _examples(
    name: str, arrays: dict[str, np.ndarray], labels: Any, names: Sequence[str] | None
) -> ArrayExamples:
    if names is None:
        return ArrayExamples.of(name, arrays, np.asarray(labels))
    numbers = {label: number for number, label in enumerate(names)}
    found = np.array([numbers.get(label, -1) for label in labels], np.int64)
    kept = np.flatnonzero(found >= 0)
    return ArrayExamples.of(name, arrays, found).take(kept)


def _idx_parts(folder: Path, files: Mapping[str, str]) -> dict[str, _Part]:
    where, parts = Path(IDX_FOLDER) if folder == Path("") else folder, {}
    for part, begin in (("train", "train"), ("validation", "t10k")):
        images = read_idx(_idx_file(where / f"{begin}-images-idx3-ubyte"))
        labels = read_idx(_idx_file(where / f"{begin}-labels-idx1-ubyte"))
        parts[part] = {"images": images}, [str(each) for each in labels.reshape(-1)]
    return parts


def _idx_file(path: Path) -> Path:
    for each in (path, path.with_name(f"{path.name}.gz")):
        if each.is_file():
            return each
    raise FileNotFoundError(
        f"{path}.gz: no such file; apt-get install dataset-fashion-mnist brings those of "
        "Fashion-MNIST, and data.folder names another folder"
    )


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file, which may be compressed.

    Raises:
      ValueError: one line on a file that is not one, or is cut.
    """
    content = read_gzip(path) if path.suffix == ".gz" else path.read_bytes()
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX:
        raise ValueError(f"{path} is not an IDX file")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[place : place + 4], "big") for place in range(4, start, 4)]
    dtype = np.dtype(_IDX[content[2]])
    if len(content) != start + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{path}: {len(content)} bytes do not hold an array of {shape}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


def _image_parts(folder: Path, files: Mapping[str, str]) -> dict[str, _Part]:
    if folder == Path("") and "train" not in files:
        raise ValueError("data.source 'images' needs data.folder, or data.files.train")
    parts = {"train": "", **files}
    return {part: _read_images(folder / parts[part]) for part in parts}


def _read_images(folder: Path) -> _Part:
    try:
        from PIL import Image, UnidentifiedImageError  # optional
    except ModuleNotFoundError:
        raise ValueError("images need Pillow: pip install pillow") from None
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images")
    arrays, labels, first = [], [], None
    for path in sorted(each for each in folder.glob("*/*") if each.is_file()):
        try:
            with Image.open(path) as image:
                plain = image if image.mode in ("L", "RGB") else image.convert("RGB")
                array = np.asarray(plain)
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} is not an image: {first_line(error)}") from error
        first = first or (path, array.shape)
        if array.shape != first[1]:
            raise ValueError(f"{path} has the shape {array.shape}, and {first[0]} {first[1]}")
        arrays.append(array)
        labels.append(path.parent.name)
    if not arrays:
        raise ValueError(f"{folder} has no images in folders that are named for their classes")
    return {"images": np.stack(arrays)}, labels


def _npz_parts(folder: Path, files: Mapping[str, str]) -> dict[str, _Part]:
    if "train" not in files:
        raise ValueError("data.source 'npz' needs data.files.train")
    return {
        part: _read_npz(folder / files[part]) for part in ("train", "validation") if files.get(part)
    }


def _read_npz(path: Path) -> _Part:
    try:
        arrays = read_arrays(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    labels = arrays.pop("labels", None)
    if labels is None or labels.ndim != 1:
        raise ValueError(f"{path} has no array 'labels' of one label for each row")
    if taken := [each for each in TAKEN if each in arrays]:
        raise ValueError(f"{path} has an array '{taken[0]}', a name that batches need: rename it")
    if labels.dtype.kind == "f":
        return arrays, labels
    return arrays, [str(each) for each in labels]


SOURCES: Mapping[str, Callable[[Path, Mapping[str, str]], dict[str, _Part]]] = {
    "idx": _idx_parts,
    "images": _image_parts,
    "npz": _npz_parts,
}
"""The parts of each source, from its folder and files."""
