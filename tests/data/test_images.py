"""Images and other arrays with labels, from IDX files, folders and .npz, and mistakes in them."""

import gzip

import numpy as np
import pytest
from one_line import refuses
from PIL import Image

from lora_jax.data import load_array_task
from lora_jax.data.sources.images import read_idx


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (12, 4, 5), np.uint8)


LABELS = np.arange(12, dtype=np.uint8) % 3


def idx(array):
    """The format as its page describes it: two zeros, the type, the axes, their sizes, bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write_idx(folder, images):
    for part, rows in (("train", slice(0, 9)), ("t10k", slice(9, 12))):
        content = gzip.compress(idx(images[rows]))
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(content)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(LABELS[rows]))


def test_idx_files_with_and_without_gz(images, tmp_path):
    write_idx(tmp_path, images)
    task = load_array_task("own", "idx", tmp_path)
    np.testing.assert_array_equal(task.train.arrays["images"], images[:9])
    np.testing.assert_array_equal(task.validation.arrays["images"], images[9:])
    np.testing.assert_array_equal(task.validation.labels, LABELS[9:])
    assert task.label_names == ("0", "1", "2") and task.num_outputs == 3


def test_some_classes_are_numbered_anew(images, tmp_path):
    write_idx(tmp_path, images)
    task = load_array_task("fashion_mnist", "idx", tmp_path, classes=("Pullover", "T-shirt/top"))
    assert task.label_names == ("Pullover", "T-shirt/top")
    np.testing.assert_array_equal(task.train.arrays["images"], images[:9][LABELS[:9] != 1])
    np.testing.assert_array_equal(task.train.labels, [1, 0, 1, 0, 1, 0])
    refuses(
        "no example has the class 'Pulover'.*Pullover",
        load_array_task,
        "fashion_mnist",
        "idx",
        tmp_path,
        classes=("Pulover", "Trouser"),
    )


def test_a_folder_for_each_class(images, tmp_path):
    for number, image in enumerate(images):
        folder = tmp_path / ("train" if number < 9 else "validation") / f"class {LABELS[number]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    parts = {"train": "train", "validation": "validation"}
    task = load_array_task("own", "images", tmp_path, parts)
    assert task.label_names == ("class 0", "class 1", "class 2")
    np.testing.assert_array_equal(task.train.labels, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(task.train.arrays["images"], images[[0, 3, 6, 1, 4, 7, 2, 5, 8]])
    alone = load_array_task("own", "images", tmp_path / "train", validation=3)
    assert (len(alone.train), len(alone.validation)) == (6, 3)
    held = {each.tobytes() for each in alone.validation.arrays["images"]}
    assert not held & {each.tobytes() for each in alone.train.arrays["images"]}
    other = tmp_path / "train" / "class 0" / "other.png"
    Image.fromarray(images[0, :2]).save(other)
    refuses("other.png has the shape", load_array_task, "own", "images", tmp_path, parts)
    other.write_bytes(b"GIF?")
    refuses("other.png is not an image", load_array_task, "own", "images", tmp_path, parts)
    refuses("no images in folders", load_array_task, "own", "images", other.parent, validation=1)
    refuses("no such folder", load_array_task, "own", "images", tmp_path / "none")
    refuses("needs data.folder", load_array_task, "own", "images")


def test_any_arrays_of_npz(tmp_path):
    x, kind = np.linspace(0, 1, 24).reshape(12, 2), np.arange(12) % 4
    np.savez(tmp_path / "all.npz", x=x, kind=kind, labels=LABELS + 9)
    task = load_array_task("own", "npz", tmp_path, {"train": "all.npz"}, validation=3)
    assert task.label_names == ("9", "10", "11")
    assert task.train.arrays.keys() == {"x", "kind"}
    rows = task.validation.arrays
    np.testing.assert_array_equal(rows["x"], x[np.searchsorted(x[:, 0], rows["x"][:, 0])])
    np.savez(tmp_path / "numbers.npz", x=x, labels=x[:, 0])
    both = dict.fromkeys(("train", "validation"), "numbers.npz")
    task = load_array_task("own", "npz", tmp_path, both)
    assert (task.label_names, task.num_outputs, task.metric) == (None, 1, "pearson")


def test_equal_examples_are_found_and_others_change_the_digest(tmp_path):
    x = np.arange(12.0).reshape(6, 2)
    x[5] = x[0]

    def made(x):
        np.savez(tmp_path / "a.npz", x=x, labels=[0, 0, 0, 1, 1, 1])
        return load_array_task("own", "npz", tmp_path, {"train": "a.npz"}, validation=2)

    held = made(x).validation.arrays["x"]
    assert not (held[:, None] == x[0]).all(-1).any()
    assert made(x).digest() == made(x.copy()).digest() != made(x + 1).digest()
    assert made(x).digest() != made(x.astype(np.float32)).digest()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((4, 2))}, "has no array 'labels' of one label for each row"),
        ({"x": np.zeros((3, 2)), "labels": [0, 1, 0, 1]}, r"'x' has shape \(3, 2\), .* 4 labels"),
        ({"x": [0, np.nan, 1, 2], "labels": [0, 1, 0, 1]}, "'x' has what is not a finite number"),
        ({"labels": [0, 1, 0, 1]}, "has labels alone"),
        ({"weight": np.zeros(4), "labels": [0, 1, 0, 1]}, "'weight', a name that batches need"),
        ({"x": np.zeros(4), "labels": [1, 1, 1, 1]}, "not two or more distinct names"),
    ],
)
def test_npz_files_that_are_wrong(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    both = dict.fromkeys(("train", "validation"), "a.npz")
    refuses(message, load_array_task, "own", "npz", tmp_path, both)


def test_files_that_are_none(images, tmp_path):
    refuses("needs data.files.train", load_array_task, "own", "npz", tmp_path)
    (tmp_path / "a.npz").write_bytes(b"PK")
    refuses("a.npz: not a zip archive", load_array_task, "own", "npz", tmp_path, {"train": "a.npz"})
    refuses("apt-get install dataset-fashion-mnist", load_array_task, "own", "idx", tmp_path)
    file = tmp_path / "train-images-idx3-ubyte"
    for content, message in (
        (b"\0\0", "is not an IDX file"),
        (b"\1\0\x08\1" + bytes(8), "is not an IDX file"),
        (idx(images)[:-1], r"255 bytes do not hold an array of \[12, 4, 5\]"),
        (idx(images)[:9], "9 bytes do not hold an array of"),
    ):
        file.write_bytes(content)
        refuses(message, read_idx, file)
    zipped = file.with_name(f"{file.name}.gz")
    zipped.write_bytes(gzip.compress(idx(images))[:-9])
    refuses("train-images-idx3-ubyte.gz is damaged", read_idx, zipped)
    write_idx(tmp_path, images)
    refuses("unknown data.source 'idxx'", load_array_task, "own", "idxx", tmp_path)
