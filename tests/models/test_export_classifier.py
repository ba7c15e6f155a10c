"""`export_model` writes transformers' names and shapes, and is the inverse of loading."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from encoder_checkpoints import SHAPES, assert_same, checkpoint, load
from flax import nnx
from make_fixtures.bert import CASES, random_inputs, random_tensors
from published_names import to_torch_names
from safetensors.numpy import load_file

from lora_jax.models.published.export import export_model


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("name", ["bert", "bert_deep", "roberta", "roberta_other_pad"])
def test_export_and_load_are_inverse(tmp_path, name, pool):
    num_labels = CASES[name][1]
    first = load(checkpoint(tmp_path / "in", name), num_labels, pool).model
    export_model(nnx.state(first), first.config, tmp_path / "out")
    second, fresh = load(tmp_path / "out", num_labels, pool)
    assert fresh == ()
    assert second.config == first.config
    assert_same(second, first)
    ids, mask, types = map(jnp.asarray, random_inputs(CASES[name][0], 0))
    np.testing.assert_array_equal(second(ids, mask, types), first(ids, mask, types))


@pytest.mark.parametrize("name", list(CASES))
def test_exported_names_and_shapes_are_transformers(tmp_path, name):
    model = load(checkpoint(tmp_path, name), CASES[name][1]).model
    nested = nnx.to_pure_dict(nnx.state(model))
    tensors = to_torch_names(nested, model.config)
    assert {k: list(v.shape) for k, v in tensors.items()} == SHAPES[name]
    for key, tensor in random_tensors(SHAPES[name], seed=0).items():
        np.testing.assert_array_equal(tensors[key], tensor.astype(np.float32))


def test_bfloat16_parameters_are_written_as_such(tmp_path):
    model = load(checkpoint(tmp_path / "in"), param_dtype=jnp.bfloat16).model
    export_model(nnx.state(model), model.config, tmp_path / "out")
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert_same(load(tmp_path / "out", param_dtype=jnp.bfloat16).model, model)


def test_export_says_what_pools(tmp_path):
    model = load(checkpoint(tmp_path / "in"), pool="mean").model
    export_model(nnx.state(model), model.config, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["architectures"], config["pool"]) == (["BertModel"], "mean")
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    # so a first-token classifier does not take it for its own
    assert load(tmp_path / "out").fresh[-2:] == ("classifier/kernel", "classifier/bias")


def test_export_refuses_what_is_no_classifier(tmp_path):
    model = load(checkpoint(tmp_path / "in")).model
    params = nnx.to_pure_dict(nnx.state(model))
    with pytest.raises(ValueError, match="'layers/lora_A' is not a parameter"):
        export_model({**params, "layers": {"lora_A": 0}}, model.config, tmp_path / "out")
    del params["classifier"]
    with pytest.raises(ValueError, match="no classifier/bias"):
        export_model(params, model.config, tmp_path / "out")
    with pytest.raises(ValueError, match="expected 2 different names"):
        export_model(nnx.state(model), model.config, tmp_path / "out", labels=("a", "b", "c"))
    assert not (tmp_path / "out").exists()
