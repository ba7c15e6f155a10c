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


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    path = written(tmp_path / predictions.NAME, header((18, 10**6)), bytes(72 * 10**6))
    assert path.stat().st_size < 10**5
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match=r"it is refused, as its .* bytes would unpack to 72,000,"):
        predictions.read(tmp_path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    "content",
    [
        *map(header, ((10**15,), (-1, -1), "ab")),
        header((2,), "<f8"),
        header((1,), "|O"),
        header((1,), "<U1"),
        *(b"[" * 3000, b"", b"\xff\x00", b"__import__('os').abort()"),
    ],
)
def test_what_holds_no_numbers_is_one_line(tmp_path, content, compression):
    written(tmp_path / predictions.NAME, content, bytes(4), compression)
    with pytest.raises(ValueError, match=r"predictions\.npz is damaged \(.*train this") as error:
        predictions.read(tmp_path)
    assert "\n" not in str(error.value)
