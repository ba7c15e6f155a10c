"""Lengths and shapes that files declare: none makes a process take memory that the file cannot."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from small_decoder import random_decoder

from experiments.runs import predictions
from lora_jax.files.gguf_file import GgufFile
from lora_jax.models.published.load import read_decoder_config

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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"llama.attention.layer_norm_rms_epsilon": np.inf}, "rms_norm_eps must be a number from"),
        (
            {"llama.attention.layer_norm_rms_epsilon": 3.0},
            "rms_norm_eps must be a number from",
        ),
        ({"llama.block_count": 10**9}, "num_hidden_layers must be an integer from 1 to 10,000"),
        (
            {"tokenizer.ggml.eos_token_id": 23},
            "eos_token_id must be in the vocabulary, whose vo",
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
