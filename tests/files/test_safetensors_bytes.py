"""Safetensors files read at once: all that safetensors writes, and no other file."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load, save, save_file

from lora_jax.files.safetensors_bytes import SafetensorsBytes
from lora_jax.files.tree_file import load_tree, save_tree
from lora_jax.interchange.peft_folder import PeftFolder

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


def test_a_header_of_an_odd_length(tmp_path):
    """Its numbers are not at multiples of their size."""
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    header += b" " * (1 - len(header) % 2)
    numbers = np.asarray([3, 4], np.float32)
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + numbers.tobytes())
    found = SafetensorsBytes(path).read("a")
    assert found.flags.aligned and found.tolist() == [3, 4]


@pytest.mark.parametrize(
    "how", [lambda path: path.write_bytes(b""), lambda path: os.truncate(path, 9)]
)
def test_a_file_that_changes_later_is_what_it_was(how, tmp_path):
    """A file that is mapped into memory would end the process here."""
    numbers = np.arange(10**6, dtype=np.float32)
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["up"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    path = tmp_path / "adapter_model.safetensors"
    save_file({"up": numbers}, path)
    folder = PeftFolder(tmp_path)
    how(path)
    np.testing.assert_array_equal(folder.read("up"), numbers)
    with pytest.raises(ValueError, match=r"bytes\) is corrupt or truncated: "):
        PeftFolder(tmp_path)


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


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({**entry(), "b": entry(data_offsets=[4, 12])["a"]}, "'b' begins at 4, expected 8"),
        (entry(data_offsets=[4, 12]), "'a' begins at 4, expected 0"),
        (entry(shape=[3]), "'a' has 8 bytes, expected 12"),
        (entry(data_offsets=[0, 4], shape=[1]), "8 bytes follow its header, which describes 4"),
        (entry(data_offsets=[0, 1 << 60], shape=[1 << 58]), "which describes 1,152,921,504,606"),
        (entry(shape=[-2, -1]), "does not describe tensor 'a'"),
        (entry(shape=[True, 2]), "does not describe tensor 'a'"),
        (entry(shape=2), "does not describe tensor 'a'"),
        (entry(data_offsets=[0]), "does not describe tensor 'a'"),
        ({"a": [1]}, "does not describe tensor 'a'"),
        ([entry()], "its header is no object"),
        ({**entry(), "__metadata__": {"format": 1}}, "must be texts by name"),
    ],
)
def test_what_safetensors_refuses_is_refused(header, said, tmp_path):
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(8)
    with pytest.raises(SafetensorError):
        load(content)
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"^{path} \(.* bytes\) is corrupt or truncated: .*{said}"
    ):
        SafetensorsBytes(path)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    content, path = save({"a": np.ones(2, np.float32)}), tmp_path / "a.safetensors"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is corrupt or truncated"):
            SafetensorsBytes(path)


def test_dtypes_that_numpy_lacks(tmp_path):
    """The file is read all the same: another tensor may be wanted."""
    header = json.dumps(entry(dtype="F4", shape=[16])).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    file = SafetensorsBytes(path)
    assert file.dtype("a") == "F4"
    with pytest.raises(ValueError, match="tensor 'a' is F4, which NumPy has not"):
        file.read("a")
