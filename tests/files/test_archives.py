"""Archives of arrays: what numpy.savez writes is read, and nothing else takes memory for it."""

import struct
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from experiments.runs import predictions
from lora_jax.files import archives

SHARED = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(path, header, data=b"", compression=zipfile.ZIP_DEFLATED, version=b"\x01\x00"):
    """An archive of one entry, `a.npy`, that has any header."""
    head = b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a.npy", head + data)
    return path


def header(shape, descr="<f4"):
    return repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"


@SHARED
@given(
    st.sampled_from(["f2", "f4", "f8", "i8", "u1", "?"]).flatmap(
        lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
    ),
    st.booleans(),
)
def test_what_numpy_writes_is_read(tmp_path, array, compressed):
    path = tmp_path / "a.npz"
    save = np.savez_compressed if compressed else np.savez
    save(path, one=array, two=np.asfortranarray(array))
    found = archives.read_arrays(path)
    assert found.keys() == {"one", "two"}
    for each in found.values():
        assert each.dtype == array.dtype
        np.testing.assert_array_equal(each, array)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header((10**15,)), "declares float32"),
        (header((-1, -1)), "declares float32"),
        (header((2,), "<f8"), "declares float64"),
        (header((10**9,), "|V0"), "declares"),
        (header((1,), "|O"), "declares object"),
        (header((1,), "<U1"), "declares <U1"),
        (header("ab"), "the header of a.npy: ValueError"),
        (header((1.5,)), "the header of a.npy: ValueError"),
        (header((1,), "nonsense"), "the header of a.npy"),
        (b"", "the header of a.npy"),
        (b"[" * 3000, "the header of a.npy"),
        (b"-" * 9000 + b"1", "the header of a.npy"),
        (b"{1: 2", "the header of a.npy"),
        (b"\xff\x00", "the header of a.npy"),
        (b"{'shape': (", "the header of a.npy"),
        (b"9" * 5000, "the header of a.npy"),
        (b"__import__('os').abort()", "the header of a.npy"),
    ],
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_header_that_cannot_be_is_one_line(tmp_path, content, said, compression):
    path = written(tmp_path / predictions.NAME, content, bytes(4), compression)
    with pytest.raises(ValueError, match=said):
        archives.read_arrays(path)
    with pytest.raises(
        ValueError, match=r"predictions\.npz is damaged \(.*train this run"
    ) as error:
        predictions.read(tmp_path)
    assert len(str(error.value).splitlines()) == 1
    good = written(path, header((1,)), bytes(4), compression)
    np.testing.assert_array_equal(archives.read_arrays(good)["a"], [0.0])


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    path = written(tmp_path / predictions.NAME, header((18, 10**6)), bytes(72 * 10**6))
    assert path.stat().st_size < 10**5
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match=r"it is refused, as its .* bytes would unpack to 72,000,"):
        predictions.read(tmp_path)


def test_entries_that_lie_in_one_another_are_refused(tmp_path):
    """One packed block that many entries of the directory name."""
    path = written(tmp_path / "a.npz", header((25_000,)), np.random.default_rng(0).bytes(100_000))
    with zipfile.ZipFile(path, "a") as file:
        first = file.infolist()[0]
        for number in range(20):
            info = zipfile.ZipInfo(f"{number}.npy")
            for name in ("header_offset", "CRC", "compress_size", "file_size", "compress_type"):
                setattr(info, name, getattr(first, name))
            file.filelist.append(info)
        setattr(file, "_didModify", True)  # noqa: B010  of which its type knows nothing
    with pytest.raises(ValueError, match=r"its entries are 2,1.* bytes, the file has 10"):
        archives.read_arrays(path)


@pytest.mark.parametrize("outputs", [np.zeros((2, 2), int), np.zeros(3), np.zeros((2, 2), bool)])
def test_other_outputs_are_no_predictions(outputs, tmp_path):
    np.savez(tmp_path / predictions.NAME, validation=outputs)
    with pytest.raises(ValueError, match=r"is damaged \('validation' has outputs of"):
        predictions.read(tmp_path)
