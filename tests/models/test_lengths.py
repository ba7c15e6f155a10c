"""Lengths and shapes that files declare: none makes a process take memory that the file cannot."""

import io
import pickle
import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from small_decoder import random_decoder
from torch_archive import Storage, archive, tensor

from experiments.runs import predictions
from lora_jax.data.tokenizing import gguf_tokenizer
from lora_jax.files.gguf_file import GgufFile
from lora_jax.models.published.load import read_decoder_config
from lora_jax.models.published.torch_bin import TorchFile

gguf = pytest.importorskip("gguf")
from gguf_files import write_decoder, write_gguf  # noqa: E402

MOST = 20_000_000
"""Bytes that a small file may cost; Python and NumPy take some, whatever it says."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a small GGUF file with each kind of metadata, and a tensor."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    words = {"tokenizer.ggml.tokens": ["a", "bc"], "general.name": "small"}
    numbers = {"tokenizer.ggml.scores": [0.5, 1.5], "llama.block_count": 2}
    write_gguf(path, "llama", words | numbers, [("token_embd.weight", np.zeros((2, 4), "f"))])
    return path.read_bytes()


def peak_of(call):
    """The most bytes that Python and NumPy had at once in a call."""
    tracemalloc.start()
    try:
        call()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST
    return peak


@pytest.mark.parametrize("count", [50_000, 2**40, 2**63])
@pytest.mark.parametrize("values", [[0.5, 1.5], ["a", "bc"]])
def test_gguf_lists_longer_than_their_file(whole, tmp_path, values, count):
    declared = struct.pack("<Q", 2)
    key = b"tokenizer.ggml." + (b"tokens" if "a" in values else b"scores")
    at = whole.index(declared, whole.index(key) + len(key) + 8)
    path = tmp_path / "model.gguf"
    path.write_bytes(whole)
    assert GgufFile(path).value(key.decode()) == values
    path.write_bytes(whole[:at] + struct.pack("<Q", count) + whole[at + 8 :])
    with pytest.raises(ValueError, match=f"is corrupt, .* a list of {count:,} elements"):
        peak_of(lambda: GgufFile(path))


def test_any_number_of_a_gguf_file_may_be_wrong(whole, tmp_path):
    path, seen = tmp_path / "model.gguf", []
    numbers = st.sampled_from([2**31, 2**40, 2**62, 2**64 - 1, 3, 200])

    @settings(max_examples=150)
    @given(st.integers(0, len(whole) - 8), numbers)
    def check(at, number):
        path.write_bytes(whole[:at] + struct.pack("<Q", number) + whole[at + 8 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's, of products that overflow
            try:
                peak_of(lambda: GgufFile(path))
            except ValueError as error:
                seen.append(str(error))
                assert "\n" not in str(error)

    check()
    assert len(seen) > 20


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"llama.attention.layer_norm_rms_epsilon": np.inf}, "rms_norm_eps must be a number that"),
        (
            {"llama.attention.layer_norm_rms_epsilon": 3.0},
            r"rms_norm_eps must be from 1e-30 to ",
        ),
        ({"llama.block_count": 10**9}, "num_hidden_layers must be an integer <= 10,000"),
        (
            {"tokenizer.ggml.eos_token_id": 23},
            "eos_token_id 23 is not in the vocabulary, whose vo",
        ),
        ({"llama.attention.key_length": 2**31 - 2}, "'rope_freqs.weight' is not the scaling of Ll"),
    ],
)
def test_what_a_gguf_file_says_of_a_model_that_is_none(tmp_path, changes, said):
    """The last would have frequencies made for as many features, before any tensor is looked at."""
    length = {"llama.attention.value_length": 2**31 - 2, "llama.rope.dimension_count": 2**31 - 2}
    changes = changes | (length if "llama.attention.key_length" in changes else {})
    extra = {"rope_freqs__weight": np.ones(2, "f")} if len(changes) > 1 else {}
    path = write_decoder(tmp_path / "a.gguf", random_decoder(), metadata=changes, **extra)
    with pytest.raises(ValueError, match=f"^{path}: .*{said}"):
        peak_of(lambda: read_decoder_config(path))


def test_a_gguf_token_that_is_a_book():
    scores = {"a": 0.0, "b": 0.0, "ab": 1.0, "abab": 2.0}
    ids = {piece: number for number, piece in enumerate(scores)}
    assert gguf_tokenizer._merges_of(scores, ids) == [("ab", "ab"), ("a", "b")]
    with pytest.raises(ValueError, match="a token of 10,001 characters; at most 10,000"):
        gguf_tokenizer._merges_of({"a" * 10_001: 0.0}, {})


def pickled(path, stream):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("any/data.pkl", stream)
    return path


@pytest.mark.parametrize("code", [b"r\x80\xf0\xfa\x02", b"p50000000\n"])
def test_a_pickle_that_counts_more_objects_than_it_has(tmp_path, code):
    """Python would make a list of twice as many."""
    stream = b"\x80\x02}" + code + b"."
    assert pickle.loads(b"\x80\x02}q\x01.") == {}
    with pytest.raises(ValueError, match="an object is numbered 50000000"):
        TorchFile(pickled(tmp_path / "a.bin", stream))


def test_a_tensor_of_one_number_repeated_without_end(tmp_path):
    path = archive(tmp_path / "a.bin", {"x": tensor(Storage(2), 0, (10**12,), (0,))})
    with pytest.raises(ValueError, match="'x' has more elements than its storage"):
        peak_of(lambda: TorchFile(path).read("x"))


def test_a_pickle_whose_error_would_be_longer_than_memory(tmp_path):
    """Tuples of one tuple twice, forty times over: a pickle of bytes, a text of terabytes."""
    shape = ()
    for _ in range(40):
        shape = (shape, shape)
    path = archive(tmp_path / "a.bin", {"x": tensor(Storage(2), 0, shape, shape)})
    with pytest.raises(ValueError, match="not a tensor") as caught:
        TorchFile(path)
    assert len(str(caught.value)) < 3000


def npz(folder, shape, content, dtype="<f4"):
    """A file of predictions whose array says that it has another shape than it has."""
    header = io.BytesIO()
    description = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    with zipfile.ZipFile(folder / predictions.NAME, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("validation.npy", header.getvalue() + content)
    return folder


def test_predictions_of_a_declared_shape(tmp_path):
    found = predictions.read(npz(tmp_path, (3, 2), np.arange(6, dtype="f").tobytes()))
    np.testing.assert_array_equal(found["validation"].outputs, [[0, 1], [2, 3], [4, 5]])


@pytest.mark.parametrize("shape", [(10**12, 2), (2**31, 2**31), (2, 2), (-3, -2)])
def test_predictions_of_another_shape_than_declared(tmp_path, shape):
    folder = npz(tmp_path, shape, bytes(24))
    with pytest.raises(
        ValueError, match=r"predictions\.npz is damaged \(validation\.npy declares "
    ):
        peak_of(lambda: predictions.read(folder))
