"""Safetensors files: those that safetensors writes, and trees of arrays; any damage is found."""

import json
import os
import random

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file
from same_leaves import assert_same

from lora_jax.files.safetensors_bytes import SafetensorsBytes
from lora_jax.files.tree_file import load_tree, save_tree

B = jnp.ones((3, 2), jnp.bfloat16)
TREE = {
    "adapters": {
        "encoder/query/kernel": {"A": jnp.arange(6.0).reshape(2, 3), "B": B},
        "encoder/bias": {},
    },
    "params": {"classifier/bias": jnp.float32(3), "t": jnp.arange(6).reshape(2, 3).T},
}


def test_a_tree_is_one_safetensors_file_that_others_can_read(tmp_path):
    path = save_tree(tmp_path / "out", TREE, {"rank": 2})
    assert path == tmp_path / "out" / "adapter.safetensors"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with safetensors.safe_open(path, framework="np") as file:
        names = {
            "adapters/encoder/query/kernel/A",
            "adapters/encoder/query/kernel/B",
            "params/classifier/bias",
            "params/t",
        }
        assert set(file.keys()) == names
        np.testing.assert_array_equal(file.get_tensor("params/t"), np.arange(6).reshape(2, 3).T)
    for where in (path, path.parent):
        tree, meta = load_tree(where)
        assert_same(tree, TREE)
        assert meta == {"rank": 2}
    save_tree(path, {"params": {}}, {})
    assert load_tree(path) == ({"params": {}}, {})


def test_a_changed_bit_or_a_missing_byte_of_the_file_is_found(tmp_path):
    path = save_tree(tmp_path / "a.safetensors", TREE, {"rank": 2})
    good, rng = path.read_bytes(), random.Random(0)
    for case in range(60):
        data = bytearray(good)
        if case % 3:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"a\.safetensors ({DAMAGED})"):
            load_tree(path)


DAMAGED = r"is damaged|was not written by|\(.* bytes\) is corrupt or truncated"


def test_trees_that_cannot_be_named_are_refused(tmp_path):
    for tree in ({"a": "x"}, {"a": [jnp.ones(2)]}, {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}):
        with pytest.raises(ValueError, match="cannot be saved"):
            save_tree(tmp_path, tree)
    with pytest.raises(FileNotFoundError, match=r"there is no adapter .*adapter\.safetensors"):
        load_tree(tmp_path)


def test_equal_trees_give_equal_files(tmp_path):
    files = {save_tree(tmp_path / str(i), TREE, {"rank": 2}).read_bytes() for i in range(20)}
    assert len(files) == 1


TENSORS = {
    "whole": np.arange(6).reshape(2, 3),
    "half": np.asarray([1.5, -2], np.float16),
    "short": np.asarray([1.5, -2, 3], ml_dtypes.bfloat16),
    "tiny": np.asarray([1, 2], ml_dtypes.float8_e4m3fn),
    "none": np.zeros((0, 3), np.float32),
    "one": np.asarray(0.25),
    "true": np.asarray([True, False]),
}


def test_what_safetensors_writes_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path, {"format": "pt"})
    file = SafetensorsBytes(path)
    assert file.metadata() == {"format": "pt"}
    assert {*file.names()} == {*TENSORS}
    for name, wanted in TENSORS.items():
        found = file.read(name)
        assert (found.dtype, file.shape(name)) == (wanted.dtype, wanted.shape)
        np.testing.assert_array_equal(found, wanted)
    assert file.dtype("short") == "BF16"


@pytest.mark.parametrize(
    "how", [lambda path: path.write_bytes(b""), lambda path: os.truncate(path, 9)]
)
def test_a_file_that_changes_later_is_what_it_was(how, tmp_path):
    """A file that is mapped into memory would end the process here."""
    path, numbers = tmp_path / "a.safetensors", np.arange(10**6, dtype=np.float32)
    save_file({"up": numbers}, path)
    file = SafetensorsBytes(path)
    how(path)
    np.testing.assert_array_equal(file.read("up"), numbers)


def test_a_file_that_grows_while_it_is_read(tmp_path, monkeypatch):
    path = save_tree(tmp_path / "a", {"a": np.ones(3, np.float32)})
    usual = os.fstat

    def then_more(number):
        found = usual(number)
        with path.open("ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(os, "fstat", then_more)
    with pytest.raises(ValueError, match="it changes while it is read"):
        load_tree(path)


def entry(**changes):
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


HEADERS = [
    {**entry(), "b": entry(data_offsets=[4, 12])["a"]},
    entry(data_offsets=[4, 12]),
    entry(shape=[3]),
    entry(data_offsets=[0, 4], shape=[1]),
    entry(data_offsets=[0, 1 << 60], shape=[1 << 58]),
    entry(shape=[-2, -1]),
    {"a": [1]},
    [entry()],
    {**entry(), "__metadata__": {"format": 1}},
]


@pytest.mark.parametrize("header", HEADERS)
def test_what_safetensors_refuses_is_refused(header, tmp_path):
    text, path = json.dumps(header).encode(), tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ValueError, match=rf"^{path} \(.* bytes\) is corrupt or truncated: \S") as e:
        SafetensorsBytes(path)
    assert "\n" not in str(e.value)


def test_dtypes_that_numpy_lacks(tmp_path):
    """The file is read all the same: another tensor may be wanted."""
    header = json.dumps(entry(dtype="F4", shape=[16])).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    file = SafetensorsBytes(path)
    assert file.dtype("a") == "F4"
    with pytest.raises(ValueError, match="tensor 'a' is F4, which NumPy has not"):
        file.read("a")
