"""`load_classifier` reads every form of a published folder, and draws a head that is not there."""

import hashlib
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from encoder_checkpoints import assert_same, checkpoint, leaves, load, torch_files
from safetensors.numpy import load_file, save_file

from lora_jax.models.published.load import load_classifier
from lora_jax.models.published.weight_files import weights_digest


def encoder_only(key):
    """As AutoModel saves it: no prefix, no classifier."""
    return (
        None if key.startswith("classifier") else key.removeprefix("bert.").removeprefix("roberta.")
    )


def test_kernels_are_transposed_and_stacked(tmp_path):
    model, fresh = load(checkpoint(tmp_path))
    tensors = load_file(tmp_path / "model.safetensors")
    assert fresh == ()
    for i in range(2):
        query = tensors[f"bert.encoder.layer.{i}.attention.self.query.weight"]
        np.testing.assert_array_equal(model.layers.attention.query.kernel[i], query.T)
        down = tensors[f"bert.encoder.layer.{i}.output.dense.bias"]
        np.testing.assert_array_equal(model.layers.down.bias[i], down)
    np.testing.assert_array_equal(model.pooler.kernel[...], tensors["bert.pooler.dense.weight"].T)
    word = tensors["bert.embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(model.embeddings.word.embedding[...], word)


def test_names_without_prefix_and_tensorflows_norm_names(tmp_path):
    whole = load(checkpoint(tmp_path / "whole")).model

    def old(key):
        return key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        )

    assert_same(load(checkpoint(tmp_path / "old", rename=old)).model, whole)
    bare = load(checkpoint(tmp_path / "bare", rename=encoder_only))
    assert bare.fresh == ("classifier/kernel", "classifier/bias")
    assert_same(bare.model, whole, but=bare.fresh)


def test_torch_files_equal_safetensors(tmp_path):
    one = load(checkpoint(tmp_path / "one")).model
    torch_files(checkpoint(tmp_path / "bin"), "pytorch_model.bin")
    assert_same(load(tmp_path / "bin").model, one)
    content = (tmp_path / "bin/pytorch_model.bin").read_bytes()
    assert weights_digest(tmp_path / "bin") == hashlib.sha256(content).hexdigest()

    shards = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    tensors = torch_files(checkpoint(tmp_path / "several"), *shards)
    names = {name: shards[i % 2] for i, name in enumerate(tensors)}
    index = tmp_path / "several/pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert_same(load(tmp_path / "several").model, one)
    # where there are both, the safetensors are read
    checkpoint(tmp_path / "bin")
    (tmp_path / "bin/pytorch_model.bin").write_bytes(b"not read")
    assert_same(load(tmp_path / "bin").model, one)


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float64"])
def test_other_float_types_become_the_parameters_type(tmp_path, stored):
    dtype = ml_dtypes.bfloat16 if stored == "bfloat16" else np.dtype(stored)
    folder = checkpoint(tmp_path)
    tensors = {k: v.astype(dtype) for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    model = load(folder).model
    kernel = model.classifier.kernel[...]
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel, tensors["classifier.weight"].T.astype(np.float32))
    half = load(folder, param_dtype=jnp.bfloat16).model
    assert {leaf.dtype for leaf in leaves(half).values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_fresh_heads_depend_on_the_key_alone(tmp_path):
    folder = checkpoint(tmp_path)
    three = load(folder, num_labels=3)
    assert three.fresh == ("classifier/kernel", "classifier/bias")
    kernel = np.asarray(three.model.classifier.kernel)
    assert kernel.shape == (16, 3)
    assert 0.01 < kernel.std() < 0.04  # initializer_range is 0.02
    assert not np.asarray(three.model.classifier.bias).any()
    assert_same(three.model, load(folder, num_labels=3).model)
    other = load_classifier(folder, num_labels=3, pool="cls", key=jax.random.key(1)).model
    assert not np.allclose(other.classifier.kernel, kernel)
    assert_same(other, three.model, but=["classifier/kernel"])

    # the checkpoint's classifier was trained on the first token, not on a mean
    assert load(folder, pool="mean").fresh == ("classifier/kernel", "classifier/bias")


def test_roberta_without_its_head_gets_a_whole_fresh_one(tmp_path):
    folder = checkpoint(tmp_path, "roberta", rename=encoder_only)
    fresh = {f"{head}/{leaf}" for head in ("pooler", "classifier") for leaf in ("kernel", "bias")}
    assert set(load(folder).fresh) == fresh
    assert load(checkpoint(tmp_path, "roberta")).fresh == ()
    assert set(load(tmp_path, num_labels=7).fresh) == {"classifier/kernel", "classifier/bias"}
    two = load(checkpoint(tmp_path / "two", "roberta", rename=encoder_only), num_labels=16).model
    assert not np.allclose(two.pooler.kernel, two.classifier.kernel)  # of one shape
