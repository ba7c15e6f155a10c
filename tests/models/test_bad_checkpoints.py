"""A checkpoint that is damaged, incomplete or at odds with its config is refused in one line."""

import dataclasses
import itertools
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from encoder_checkpoints import checkpoint, load, torch_files
from make_fixtures.bert import CASES

from lora_jax.data import load_tokenizer
from lora_jax.models import families
from lora_jax.models.published.load import read_decoder_config, read_encoder_config
from lora_jax.models.published.weight_files import weights_digest

BERT = CASES["bert"][0]
QUERY = "bert.encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({QUERY: None}, f"no tensor '{QUERY}'"),
        (
            {QUERY: np.ones((16, 4))},
            rf"'{QUERY}' has shape \(16, 4\), config.json asks for \(16, 16",
        ),
        ({QUERY: np.ones((16, 16), np.int8)}, f"'{QUERY}' is I8, expected one of .*F32"),
        ({"bert.embeddings.word_embeddings.weight": None}, "no tensor 'bert.embeddings.word_emb"),
        ({"config": {**BERT, "num_hidden_layers": 3}}, "no tensor 'bert.encoder.layer.2.attention"),
        ({"config": {**BERT, "num_hidden_layers": 1}}, r"does not use tensor 'bert.*layer\.1\."),
        (
            {QUERY.replace("weight", "lora_A"): np.ones((2, 16))},
            r"not use tensor '.*query\.lora_A'",
        ),
        (
            {"config": {**BERT, "vocab_size": 60}},
            r"has shape \(50, 16\), config.json asks for \(60",
        ),
        (
            {"config": {**BERT, "model_type": "distilbert"}},
            "config.json: model_type 'distilbert' is",
        ),
        ({"config": {**BERT, "hidden_act": "mish"}}, "config.json: hidden_act 'mish'"),
    ],
)
def test_tensors_that_do_not_fit_the_config(tmp_path, change, message, monkeypatch):
    folder = checkpoint(tmp_path, **change)
    monkeypatch.setattr(jnp, "asarray", None)  # nothing may reach a device
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_are_not_finite(tmp_path, file, value):
    poisoned = np.ones((16, 16))
    poisoned[3, 5] = value
    folder = checkpoint(tmp_path, **{QUERY: poisoned})
    if file.endswith(".bin"):
        torch_files(folder, file)
    with pytest.raises(ValueError, match=rf"{file}: tensor '{QUERY}' holds NaN or an inf"):
        load(folder)


@pytest.mark.parametrize("kept", [0, 4, 200, 5000, -1])
def test_truncated_weights(tmp_path, kept):
    file = checkpoint(tmp_path) / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:kept])
    size = f"{len(content[:kept]):,}"
    with pytest.raises(
        ValueError, match=rf"model.safetensors \({size} bytes\) is corrupt"
    ) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_safetensors(tmp_path):
    file = checkpoint(tmp_path) / "model.safetensors"
    file.write_bytes(np.random.RandomState(0).bytes(3000))
    with pytest.raises(ValueError, match=r"\(3,000 bytes\) is corrupt or truncated"):
        load(tmp_path)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.config\.json: no such file"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        weights_digest(tmp_path / "nowhere")
    folder = checkpoint(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"neither model\.safetensors nor pytorch_model\.bin, nor an index"
    ):
        load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin \(1 bytes\) is corrupt or trunc"):
        load(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"index\.json: no weight_map"):
        load(folder)
    for content, message in (
        ("{", " is not JSON"),
        ("[1]", ": expected a JSON object, got a list"),
    ):
        (folder / "config.json").write_text(content)
        with pytest.raises(ValueError, match=rf"config\.json{message}"):
            load(folder)


WRONG = (5, -1, 1.5, True, "x", [], ["gelu"], {}, {"a": 1}, [[1]], [None], 10**30)


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta-v2"])
def test_a_setting_of_a_wrong_type_is_one_line(tmp_path, name):
    settings = {field.name for field in dataclasses.fields(families.find(name).config)}
    settings |= {"position_embedding_type", "is_decoder", "attention_head_size"}
    for setting, wrong in itertools.product(sorted(settings), WRONG):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": name, setting: wrong}))
        try:
            read_encoder_config(tmp_path)  # some of these are right for some settings
        except ValueError as error:
            assert re.fullmatch(rf".*config\.json: .*{setting}.*", str(error))


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta-v2"])
def test_a_null_is_refused_but_where_it_means_something(tmp_path, name):
    allowed = {"classifier_dropout", "cls_dropout", "pos_att_type"}
    for field in dataclasses.fields(families.find(name).config):
        content = {"model_type": name, field.name: None}
        (tmp_path / "config.json").write_text(json.dumps(content))
        if field.name in allowed:
            read_encoder_config(tmp_path)
            continue
        with pytest.raises(ValueError, match=rf"config\.json: {field.name}\b.*(null|None)"):
            read_encoder_config(tmp_path)


@pytest.mark.parametrize(
    "value", [["bert"], {"a": 1}, None, 3, True, "brt", "[" * 50], ids=lambda value: repr(value)[:9]
)
def test_a_model_type_of_any_kind_is_one_line(tmp_path, value):
    folder = checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": value}))
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    for read in (load, read_decoder_config, load_tokenizer):
        with pytest.raises(ValueError, match=r"\.json") as error:
            read(folder)
        assert "\n" not in str(error.value)
