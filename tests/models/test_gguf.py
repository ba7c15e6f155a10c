"""Decoders from GGUF files: every layout and type of weight, configs, and what is refused."""

import hashlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_decoder import random_decoder

from lora_jax.files.gguf_file import GgufFile
from lora_jax.models.parts.rope import Rope, frequencies
from lora_jax.models.published.load import load_classifier, load_decoder, read_decoder_config
from lora_jax.models.published.weight_files import find_gguf, weights_digest
from lora_jax.partition import path_name

gguf = pytest.importorskip("gguf")
from gguf_files import (  # noqa: E402
    TYPES,
    as_converted,
    metadata_of,
    permuted,
    write_decoder,
    write_gguf,
)

FAMILIES = {
    "llama": ("llama", {}),
    "llama_biases": ("llama", {}),
    "mistral": ("llama", {}),
    "qwen2": ("qwen2", {"use_sliding_window": False, "max_window_layers": 28}),
    "qwen3": ("qwen3", {}),
    "gpt2": ("gpt2", {}),
    "gpt2_untied": ("gpt2", {"activation_function": "gelu_new"}),
}


def same(first, second):
    pairs = [jax.tree_util.tree_leaves_with_path(nnx.state(each)) for each in (first, second)]
    for (path, one), (other_path, other) in zip(*pairs, strict=True):
        assert path == other_path and one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, err_msg=str(path))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_written_is_read(name, tmp_path):
    arch, changes = FAMILIES[name]
    model = random_decoder(name, bos_token_id=1, eos_token_id=2, **changes)
    path = write_decoder(tmp_path / "model.gguf", model, arch)
    again = load_decoder(path)
    same(model, again)
    assert again.config == model.config == read_decoder_config(path)


def test_queries_and_keys_are_stored_in_another_order(tmp_path):
    """Otherwise the test above shows nothing of the order."""
    model = random_decoder("llama")
    written = dict(as_converted(model, "llama"))["blk.1.attn_k.weight"]
    kernel = np.asarray(model.layers.attention.key.kernel)[1].T
    assert not np.array_equal(written, kernel)
    # feature i of a head of 4 and its partner i + 2 stand side by side
    np.testing.assert_array_equal(written[:4], kernel[[0, 2, 1, 3]])
    np.testing.assert_array_equal(permuted(kernel, 2), written)


QUANTISED = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
# half the distance between neighbouring values, of the largest in a block: scales are in float16
ERRORS = {"Q4_0": 1 / 7, "Q4_1": 1 / 15, "Q5_0": 1 / 15, "Q5_1": 1 / 31, "Q8_0": 0.51 / 127}
ERRORS |= {"F16": 2**-11, "BF16": 2**-8}


@pytest.fixture(scope="module")
def wide_model():
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    return random_decoder("llama", **sizes)


@pytest.mark.parametrize("name", QUANTISED)
def test_types_of_weights(name, wide_model, tmp_path):
    """As gguf dequantises them, which is near what they were made from."""
    path = write_decoder(tmp_path / "model.gguf", wide_model, type=TYPES[name])
    loaded = nnx.to_pure_dict(nnx.state(load_decoder(path)))
    exact = nnx.to_pure_dict(nnx.state(wide_model))
    written = dict(as_converted(wide_model, "llama"))
    stored = gguf.quants.quantize(written["blk.0.ffn_down.weight"], TYPES[name])
    expected = gguf.quants.dequantize(stored, TYPES[name])
    down = np.asarray(loaded["layers"]["down"]["kernel"])[0]
    np.testing.assert_array_equal(down.T, expected)
    for (key_path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(loaded), jax.tree.leaves(exact), strict=True
    ):
        assert one.dtype == jnp.float32
        if path_name(key_path).endswith("scale"):
            np.testing.assert_array_equal(one, other)
        else:
            one, other = np.asarray(one), np.asarray(other)
            error = np.abs(one - other).max() / np.abs(other).max()
            assert 0 < error < ERRORS[name], path_name(key_path)


@pytest.mark.parametrize("name", ["Q2_K", "Q4_K", "Q6_K", "IQ4_NL"])
def test_types_that_only_llama_cpp_writes(name, tmp_path):
    """Random blocks with finite scales; a type is dequantised by gguf, rows of heads reordered."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    model = random_decoder("llama", vocab_size=5, **sizes)
    _, size = gguf.GGML_QUANT_SIZES[TYPES[name]]
    halves = {"Q2_K": (80, 82), "Q4_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,)}
    random, stored = np.random.default_rng(0), []
    for tensor, array in as_converted(model, "llama"):
        if array.ndim == 1:
            stored.append((tensor, array))
            continue
        rows, columns = gguf.quant_shape_to_byte_shape(array.shape, TYPES[name])
        blocks = random.integers(0, 256, (rows, columns // size, size), np.uint8)
        for at in halves[name]:
            scales = random.uniform(-1, 1, blocks.shape[:2]).astype(np.float16)
            blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
        stored.append((tensor, blocks.reshape(rows, columns), TYPES[name]))
    path = write_gguf(tmp_path / "a.gguf", "llama", metadata_of(model.config, "llama"), stored)
    loaded = load_decoder(path)
    raw = {each[0]: each[1] for each in stored}
    for tensor, kernel, heads in (
        ("attn_q", loaded.layers.attention.query.kernel, 4),
        ("attn_k", loaded.layers.attention.key.kernel, 2),
        ("attn_v", loaded.layers.attention.value.kernel, None),
        ("ffn_gate", loaded.layers.gate.kernel, None),
    ):
        expected = gguf.quants.dequantize(raw[f"blk.0.{tensor}.weight"], TYPES[name])
        own = np.asarray(kernel)[0].T
        np.testing.assert_array_equal(own if heads is None else permuted(own, heads), expected)
        assert expected.std() > 0.1


def test_options_reach_the_model(tmp_path):
    path = write_decoder(tmp_path / "model.gguf", random_decoder("llama"))
    options = {"dtype": jnp.bfloat16, "remat": "dots_saveable", "implementation": "xla"}
    model = load_decoder(path, param_dtype=jnp.bfloat16, **options)
    assert {name: getattr(model, name) for name in options} == options
    assert model.head.kernel.dtype == jnp.bfloat16


def test_where_a_file_is_found(tmp_path):
    model = random_decoder("gpt2")
    path = write_decoder(tmp_path / "model.gguf", model, "gpt2")
    for given in (path, str(path), tmp_path):
        same(load_decoder(given), model)
        assert find_gguf(given) == path
        assert weights_digest(given) == hashlib.sha256(path.read_bytes()).hexdigest()
    shutil.copy(path, tmp_path / "other.gguf")
    with pytest.raises(ValueError, match=r"several GGUF files; .* one: model\.gguf, other\.gguf"):
        load_decoder(tmp_path)
    (tmp_path / "config.json").write_text("{}")  # then it is a folder as all others
    assert find_gguf(tmp_path) is None and find_gguf(path) == path
    with pytest.raises(FileNotFoundError, match=r"gone\.gguf: no such file"):
        load_decoder(tmp_path / "gone.gguf")


# ---- configs ------------------------------------------------------------------------------------


def config_of(tmp_path, arch="llama", tensors=(), **metadata):
    """The config of a file without weights."""
    metadata = {key.replace("__", "."): value for key, value in metadata.items()}
    config = random_decoder("llama", hidden_size=256, rope_theta=500000.0).config
    own = metadata_of(config, arch) | {f"{arch}.vocab_size": 23} | metadata
    path = write_gguf(tmp_path / "c.gguf", arch, own, tensors)
    return read_decoder_config(path)


def test_numbers_are_the_published_ones(tmp_path):
    """float32's 9.999999747378752e-06 is the 1e-5 of config.json."""
    config = config_of(tmp_path, llama__attention__layer_norm_rms_epsilon=1e-5)
    assert config.rms_norm_eps == 1e-5 and config.rope == Rope(500000.0)
    assert (config.vocab_size, config.head_dim, config.eos_token_id) == (23, 64, (2,))
    assert config.pad_token_id is None and config.tie_word_embeddings


def test_tokens_that_end_a_text(tmp_path):
    ids = {"tokenizer__ggml__eos_token_id": 7, "tokenizer__ggml__eot_token_id": 9}
    config = config_of(tmp_path, **ids, tokenizer__ggml__padding_token_id=3)
    assert config.eos_token_id == (7, 9) and config.pad_token_id == 3
    ids["tokenizer__ggml__eot_token_id"] = 7
    assert config_of(tmp_path, **ids).eos_token_id == (7,)


def test_what_a_file_may_leave_out(tmp_path):
    names = ("head_count_kv", "key_length", "value_length")
    absent = {f"llama__attention__{name}": None for name in names}
    absent |= {"llama__rope__freq_base": None, "llama__rope__dimension_count": None}
    config = config_of(tmp_path, **absent)
    assert (config.num_key_value_heads, config.head_dim) == (4, 64)
    assert config.rope == Rope(10000.0)


@pytest.mark.parametrize(
    ("metadata", "rope"),
    [
        ({"type": "none"}, Rope(500000.0)),
        ({"type": "linear", "factor": 1.0}, Rope(500000.0)),
        ({"type": "linear", "factor": 4.0}, Rope(500000.0, "linear", factor=4.0)),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 4096},
            Rope(500000.0, "yarn", factor=4.0, original_max_position_embeddings=4096),
        ),
        (
            {"type": "yarn", "factor": 2.0, "yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0},
            Rope(
                500000.0,
                "yarn",
                factor=2.0,
                beta_fast=16.0,
                beta_slow=2.0,
                original_max_position_embeddings=64,
            ),
        ),
    ],
)
def test_scalings_of_positions(metadata, rope, tmp_path):
    given = {f"llama__rope__scaling__{key}": value for key, value in metadata.items()}
    assert config_of(tmp_path, **given).rope == rope


def test_scaling_before_it_had_a_type(tmp_path):
    rope = config_of(tmp_path, llama__rope__scale_linear=8.0).rope
    assert rope == Rope(500000.0, "linear", factor=8.0)


def llama3_divisors(head_dim, theta, factor, original=8192, low=1.0, high=4.0):
    """As llama.cpp's conversion computes rope_freqs.weight."""
    divisors = []
    for i in range(0, head_dim, 2):
        length = 2 * np.pi * theta ** (i / head_dim)
        if length < original / high:
            divisors.append(1.0)
        elif length > original / low:
            divisors.append(factor)
        else:
            smooth = (original / length - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_scaling_of_llama_3(factor, tmp_path):
    divisors = llama3_divisors(64, 500000.0, factor)
    rope = config_of(tmp_path, tensors=[("rope_freqs.weight", divisors)]).rope
    assert (rope.rope_type, rope.factor) == ("llama3", factor)
    plain = 500000.0 ** -(np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(frequencies(rope, 64)[0], plain / divisors, rtol=1e-6)
    for other in (llama3_divisors(64, 500000.0, factor, original=4096), divisors[:-1]):
        with pytest.raises(ValueError, match=r"'rope_freqs\.weight' is not the scaling of Llama 3"):
            config_of(tmp_path, tensors=[("rope_freqs.weight", other)])


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"arch": "llama4"}, "architecture 'llama4' is not supported; nearest: 'llama'"),
        ({"llama__embedding_length": None}, "no 'llama.embedding_length'; nearest: 'llama"),
        ({"llama__block_count": 0}, "num_hidden_layers must be an integer >= 1, got 0"),
        ({"llama__expert_count": 8}, "mixtures of experts are not supported"),
        ({"llama__attention__head_count_kv": [2, 1]}, r"different sizes \(head_count_kv: \[2, 1"),
        ({"llama__feed_forward_length": [20, 24]}, "layers of different sizes"),
        ({"llama__rope__dimension_count": 32}, "rope.dimension_count 32 is not .* length 64"),
        ({"llama__attention__value_length": 32}, "attention.value_length 32 is not supported"),
        ({"llama__rope__scaling__type": "longrope"}, "rope.scaling.type 'longrope' is not supp"),
        (
            {"llama__rope__scaling__type": "yarn", "llama__rope__scaling__attn_factor": 0.5},
            "attn_factor other than 1 is not supported",
        ),
        ({"split__count": 3}, "one of 3 parts; join them: llama-gguf-split --merge"),
        ({"arch": "qwen2", "qwen2__attention__sliding_window": 4}, "sliding_window of a qwen2"),
    ],
)
def test_what_no_decoder_here_has(metadata, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        config_of(tmp_path, **metadata)
    said = str(caught.value)
    assert "\n" not in said and said.count("c.gguf") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blk__1__attn_q__weight": None}, r"no tensor 'model\.layers\.1\.self_attn\.q_proj\.w"),
        ({"output_norm__weight": None}, r"no tensor 'model\.norm\.weight'; nearest: "),
        (
            {"blk__1__attn_q__weight": np.ones((8, 16), np.float32)},
            r"'blk\.1\.attn_q\.weight'\) has shape \(8, 16\), the metadata asks for \(16, 16\)",
        ),
        ({"blk__1__ffn_up__weight": np.ones((20, 16), np.int32)}, "'blk.1.ffn_up.weight' is I32"),
        (
            {"blk__1__ffn_up__weight": np.full((20, 16), np.inf, np.float32)},
            "'blk.1.ffn_up.weight' holds NaN or an infinity",
        ),
        (
            {"blk__0__attn_q__bias": np.ones(16, np.float32)},
            r"does not use tensor 'model\.layers\.0\.self_attn\.q_proj\.bias'",
        ),
        (
            {"blk__0__attn_sub_norm__weight": np.ones(16, np.float32)},
            r"does not use tensor 'model\.layers\.0\.attn_sub_norm\.weight'",
        ),
        (
            {"blk__2__ffn_up__weight": np.ones((20, 16), np.float32)},
            r"does not use tensor 'model\.layers\.2\.mlp\.up_proj\.weight'",
        ),
        ({"metadata": {"llama.block_count": 3}}, r"no tensor 'model\.layers\.2\."),
        ({"metadata": {"llama.vocab_size": 24}}, r"shape \(23, 16\), the metadata asks for \(24, "),
    ],
)
def test_wrong_weights_are_named(change, message, tmp_path):
    path = write_decoder(tmp_path / "model.gguf", random_decoder("llama"), **change)
    with pytest.raises(ValueError, match=message) as caught:
        load_decoder(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_all_is_checked_before_anything_is_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(GgufFile, "read", lambda self, name: read.append(name))
    path = tmp_path / "model.gguf"
    write_decoder(path, random_decoder("llama"), output_norm__weight=None)
    with pytest.raises(ValueError, match="no tensor"):
        load_decoder(path)
    assert read == []
    with pytest.raises(ValueError, match="remat must be"):
        load_decoder(path, remat="all")


def test_damaged_files_are_one_line(tmp_path):
    whole = write_decoder(tmp_path / "whole.gguf", random_decoder("llama")).read_bytes()
    path = tmp_path / "model.gguf"
    lengths = [0, 3, 4, 12, 30, 200, 700, 1500, 4000, len(whole) - 1]
    wrong = [whole[:length] for length in lengths]
    wrong += [b"PK" + whole[2:], whole[:4] + b"\x09" + whole[5:], b"\xff" * 500]
    wrong.append(whole[:8] + b"\xff" * 8 + whole[16:])  # as many tensors as there can be
    for content in wrong:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.gguf \([\d,]+ bytes\) is corrupt") as caught:
            load_decoder(path)
        assert "\n" not in str(caught.value)


def test_a_classifier_needs_another_folder(tmp_path):
    path = write_decoder(tmp_path / "model.gguf", random_decoder("llama"))
    for given in (path, tmp_path):
        with pytest.raises(
            ValueError, match=r"model\.gguf: GGUF files hold decoders; a classifier"
        ):
            load_classifier(given, num_labels=2, pool="mean", key=jax.random.key(0))


def test_the_other_byte_order_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"model\.gguf: written in the byte order of another"):
        load_decoder(path)


def test_without_the_package_the_command_is_named(tmp_path, monkeypatch):
    path = write_decoder(tmp_path / "model.gguf", random_decoder("llama"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r'run: pip install "lora-jax\[decoders\]"$') as caught:
        load_decoder(path)
    assert "\n" not in str(caught.value)
