"""Files of torch.save, read without torch: what they hold, and what is refused."""

import shutil
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from make_fixtures.torch_bin import FIXTURES
from torch_archive import Named, Storage, archive, tensor

from lora_jax.models.published.torch_bin import TorchFile

TRUTH = np.load(FIXTURES / "torch_bin.npz")


def test_tensors_are_those_that_torch_saved():
    file = TorchFile(FIXTURES / "torch_bin.bin")
    assert file.names() == TRUTH.files
    for name in file.names():
        tensor = file.read(name)
        assert file.shape(name) == tensor.shape == TRUTH[name].shape
        if name != "bfloat16":
            assert tensor.dtype == TRUTH[name].dtype
        np.testing.assert_array_equal(tensor.astype(TRUTH[name].dtype), TRUTH[name], err_msg=name)
    assert file.read("bfloat16").dtype == np.dtype(ml_dtypes.bfloat16)
    types = [file.dtype(name) for name in ("double", "float", "half", "bfloat16", "long", "bool")]
    assert types == ["F64", "F32", "F16", "BF16", "I64", "BOOL"]


def test_the_format_of_old_torch_is_named():
    with pytest.raises(ValueError, match=r"torch before 1\.6.*torch\.save\(torch\.load\(file\), f"):
        TorchFile(FIXTURES / "torch_bin_legacy.bin")


def test_the_hand_written_archive_is_one(tmp_path):
    """Otherwise the refusals below would show nothing."""
    data = np.array([1.5, -2.0], np.float32).tobytes()
    file = TorchFile(archive(tmp_path / "a.bin", {"x": tensor(Storage(2))}, data))
    np.testing.assert_array_equal(file.read("x"), [1.5, -2.0])


def system(path):
    return Named("os", "system", f"touch {path}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": Named("builtins", "eval", "1")}, r"asks for builtins\.eval.*refused"),
        ({"x": Named("torch", "load", "f")}, r"asks for torch\.load.*refused"),
        ({"x": Named("torch.storage", "_load_from_bytes", b"")}, "_load_from_bytes.*refused"),
        ({"x": tensor(Storage(2, "QInt8Storage"))}, r"asks for torch\.QInt8Storage.*refused"),
        ({"x": tensor(Storage(-2))}, "not a storage"),
        ({"x": tensor(Storage("2"))}, "not a storage"),
        ({"x": tensor("no storage")}, "not a tensor"),
        ({"x": tensor(Storage(2), shape=(2, 1))}, "not a tensor"),
        ({"x": tensor(Storage(2), strides=(-1,))}, "not a tensor"),
        ({"x": tensor(Storage(2), offset=-1)}, "not a tensor"),
        ({"x": 3}, "'x' is not a tensor"),
        ({"state_dict": {"x": tensor(Storage(2))}}, "'state_dict' is not a tensor"),
        ({1: tensor(Storage(2))}, "1 is not a tensor"),
        ([tensor(Storage(2))], "holds a list, not named tensors"),
        (Named("torch", "FloatStorage", 3), "the pickle in it is corrupt"),
    ],
)
def test_all_but_named_tensors_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        TorchFile(archive(tmp_path / "a.bin", content))
    assert str(tmp_path / "a.bin") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hostile_pickle_runs_nothing(tmp_path):
    touched = tmp_path / "touched"
    for content in (system(touched), {"x": system(touched)}, {"x": tensor(system(touched))}):
        with pytest.raises(ValueError, match=r"asks for os\.system.*refused"):
            TorchFile(archive(tmp_path / "a.bin", content))
    assert not touched.exists()


@pytest.mark.parametrize(
    ("given", "data", "message"),
    [
        (tensor(Storage(2)), bytes(4), "'x' has 4 bytes, expected 8"),
        (tensor(Storage(2), shape=(3,)), bytes(8), "'x' reaches beyond its storage"),
        (tensor(Storage(2), offset=1), bytes(8), "'x' reaches beyond its storage"),
        (tensor(Storage(2), strides=(2,)), bytes(8), "'x' reaches beyond its storage"),
        (tensor(Storage(2), shape=(3,), strides=(0,)), bytes(8), "'x' has more elements than its"),
        (tensor(Storage(2), shape=(10**9, 10**9), strides=(0, 0)), bytes(8), "more elements"),
    ],
)
def test_tensors_outside_their_storage_are_refused(tmp_path, given, data, message):
    file = TorchFile(archive(tmp_path / "a.bin", {"x": given}, data))
    with pytest.raises(ValueError, match=message):
        file.read("x")


def test_other_archives_are_refused(tmp_path):
    path, good = tmp_path / "a.bin", {"x": tensor(Storage(2))}
    with pytest.raises(ValueError, match=r"entry any/byteorder is compressed"):
        TorchFile(archive(path, good, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match="big-endian"):
        TorchFile(archive(path, good, byteorder=b"big"))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("hello", "world")
    with pytest.raises(ValueError, match=r"torch\.save did not write it"):
        TorchFile(path)


@pytest.mark.parametrize("kept", [0, 1, 100, 2000, -1])
def test_truncated_files(tmp_path, kept):
    content = (FIXTURES / "torch_bin.bin").read_bytes()[:kept]
    (tmp_path / "a.bin").write_bytes(content)
    size = f"{len(content):,}"
    with pytest.raises(ValueError, match=rf"a\.bin \({size} bytes\) is corrupt or truncated"):
        TorchFile(tmp_path / "a.bin")


def test_flipped_bits_are_noticed(tmp_path):
    path = tmp_path / "a.bin"
    shutil.copy(FIXTURES / "torch_bin.bin", path)
    content = bytearray(path.read_bytes())
    start = content.index(TRUTH["float"].tobytes())
    content[start] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.bin: corrupt or truncated"):
        TorchFile(path).read("float")


def entry_size(path, name, value):
    """Another size for an entry of a zip archive, in both of its directories."""
    content = path.read_bytes()
    for signature, place in ((b"PK\x03\x04", (22, 30)), (b"PK\x01\x02", (24, 46))):
        size, start = place
        at = next(
            i for i in range(len(content)) if content[i:].startswith(signature)
            and content[i + start :].startswith(name)
        )  # fmt: skip
        content = content[: at + size] + struct.pack("<I", value) + content[at + size + 4 :]
    path.write_bytes(content)


def test_archives_that_cannot_hold_what_they_declare_are_refused(tmp_path, monkeypatch):
    """Before anything is unpacked: reading an entry would fail the test."""
    path, good = tmp_path / "a.bin", {"x": tensor(Storage(2))}

    def refused(message):
        monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("unpacked"))
        with pytest.raises(ValueError, match=message) as error:
            TorchFile(path)
        monkeypatch.undo()
        assert str(path) in str(error.value) and "\n" not in str(error.value)

    with zipfile.ZipFile(archive(path, good), "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("any/data/1", bytes(70 << 20))
    assert path.stat().st_size < 1 << 20
    refused("it is refused, as its .* bytes would unpack to 73,4")
    entry_size(archive(path, good), b"any/data/0", 2**31)
    refused("entry any/data/0 declares two sizes")
    with (
        zipfile.ZipFile(archive(path, good), "a") as file,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        file.writestr("any/data/0", bytes(8))
    refused("the archive has the same entry twice")


@pytest.mark.parametrize("opcode", [b"r" + struct.pack("<I", 2**30), b"p9999999999\n", b"q\xff"])
def test_a_pickle_takes_no_more_memory_than_its_length(tmp_path, opcode):
    pickled = b"\x80\x02}" + opcode + b"."
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("any/data.pkl", pickled)
    with pytest.raises(ValueError, match=r"a\.bin: the pickle in it is corrupt .*is numbered"):
        TorchFile(path)


def test_an_error_does_not_write_out_all_of_a_pickle(tmp_path):
    """Objects of two of the one before: 2**60 of them, written out."""
    nested = ()
    for _ in range(60):
        nested = (nested, nested)
    for content in ({"x": nested}, {"x": tensor(Storage(nested))}, {"x": tensor(nested)}):
        with pytest.raises(ValueError, match="not a ") as error:
            TorchFile(archive(tmp_path / "a.bin", content))
        assert len(str(error.value)) < 2000


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 700), st.binary(min_size=1, max_size=4), st.integers(0, 4))
@example(481, b"\0", 0)  # it seeks to a place before the file
def test_any_damage_to_an_archive_is_one_line(tmp_path, place, put, gone):
    whole = archive(tmp_path / "a.bin", {"x": tensor(Storage(2))}).read_bytes()
    place = min(place, len(whole))
    (tmp_path / "b.bin").write_bytes(whole[:place] + put + whole[place + gone :])
    try:
        file = TorchFile(tmp_path / "b.bin")
        for name in file.names():
            file.read(name)
    except ValueError as error:
        assert "b.bin" in str(error) and len(str(error).splitlines()) == 1
