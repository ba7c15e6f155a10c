"""Models written with the config of their source, in another precision, and compared with it."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from drawn_model import drawn
from flax import nnx
from make_fixtures import bert, deberta
from published_names import to_torch_names
from safetensors.numpy import load_file, save_file
from small_decoder import random_decoder

from lora_jax.models import families
from lora_jax.models.published.export import changed_from, export_model
from lora_jax.models.published.load import load_classifier, load_decoder
from lora_jax.models.published.weight_files import INDEX, SINGLE
from lora_jax.partition import flatten, parts_of

ENCODERS = {
    "bert": bert.CASES["bert"][0],
    "roberta": bert.CASES["roberta"][0],
    "deberta": deberta.CASES["v2"][0],
}
DECODERS = ("llama_biases", "mistral", "qwen2", "qwen3", "gpt2", "gpt2_untied")


def classifier(name, pool="cls", labels=3, **changes):
    content = {**ENCODERS[name], **changes}
    family = families.family_of(content)
    config = family.config.from_json(content)
    return drawn(lambda: family.model(config, labels, pool, rngs=nnx.Rngs(0)))


def reread(folder, model, dtype=jnp.float32):
    if not hasattr(model, "classifier"):
        return load_decoder(folder, param_dtype=dtype)
    options = {"num_labels": 3, "pool": model.pool, "param_dtype": dtype}
    found, fresh = load_classifier(folder, key=jax.random.key(0), **options)
    assert fresh == ()
    return found


@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS])
def test_written_in_half_precision_and_in_shards(name, tmp_path):
    """Every family comes back as its own weights, rounded; what rounding changes is said."""
    model = classifier(name) if name in ENCODERS else random_decoder(name)
    rounding = export_model(
        nnx.state(model), model.config, tmp_path, dtype="bfloat16", shard_bytes=3000
    )
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    index = json.loads((tmp_path / INDEX).read_text())
    files = {file: load_file(tmp_path / file) for file in set(index["weight_map"].values())}
    assert len(files) > 2 and not (tmp_path / SINGLE).exists()
    for file, tensors in files.items():
        assert len(tensors) == 1 or sum(each.nbytes for each in tensors.values()) <= 3000, file
        assert {each.dtype for each in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    total = sum(each.nbytes for tensors in files.values() for each in tensors.values())
    assert index["metadata"]["total_size"] == total
    again = reread(tmp_path, model)
    assert again.config == model.config
    expected, _ = flatten(nnx.state(model))
    for path, leaf in flatten(nnx.state(again))[0].items():
        rounded = np.asarray(expected[path]).astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(leaf, rounded, err_msg=path)
    assert rounding.keys() == index["weight_map"].keys()
    assert 0 < max(rounding.values()) < 2**-8


def test_how_much_rounding_changes_a_tensor(tmp_path):
    model = classifier("bert")
    rounding = export_model(nnx.state(model), model.config, tmp_path, dtype="float16")
    name = "bert.encoder.layer.1.output.dense.weight"
    exact = to_torch_names(nnx.state(model), model.config)[name].astype(np.float64)
    written = load_file(tmp_path / SINGLE)[name]
    assert written.dtype == np.float16
    error = np.linalg.norm(written - exact) / np.linalg.norm(exact)
    np.testing.assert_allclose(rounding[name], error, rtol=1e-12)
    assert export_model(nnx.state(model), model.config, tmp_path) == {}


def test_numbers_beyond_the_range_of_float16(tmp_path):
    model = random_decoder("llama")
    model.layers.down.kernel[...] = model.layers.down.kernel[...].at[1, 0, 0].set(-70000.0)
    said = r"'model.layers.1.mlp.down_proj.weight' holds 7e\+04, which is too large for float16"
    with pytest.raises(ValueError, match=said):
        export_model(nnx.state(model), model.config, tmp_path, dtype="float16")
    assert not list(tmp_path.iterdir())
    export_model(nnx.state(model), model.config, tmp_path, dtype="bfloat16")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model.layers.down.kernel[...] = model.layers.down.kernel[...].at[1, 0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"'model.layers.1.mlp.down_proj.weight' holds NaN$"):
        export_model(nnx.state(model), model.config, tmp_path, dtype="float16", shard_bytes=3000)
    with pytest.raises(ValueError, match="is the model that this is made from"):
        export_model(nnx.state(model), model.config, tmp_path, source=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_config_is_the_source_with_what_changed(tmp_path):
    published = {
        **ENCODERS["roberta"],
        **{"attention_probs_dropout_prob": 0.25, "an_own_setting": [1, 2]},
        **{"architectures": ["RobertaForMaskedLM"], "_name_or_path": "x", "dtype": "float16"},
    }
    (tmp_path / "in").mkdir()
    (tmp_path / "in/config.json").write_text(json.dumps(published))
    model = classifier("roberta", attention_probs_dropout_prob=0.25)
    config = model.config.with_head_dropout(0.3)
    options = {"source": tmp_path / "in", "labels": ("no", "maybe", "yes")}
    export_model(nnx.state(model), config, tmp_path / "out", **options)
    content = json.loads((tmp_path / "out/config.json").read_text())
    del published["_name_or_path"], published["dtype"]
    assert content == {
        **published,
        "classifier_dropout": 0.3,
        "architectures": ["RobertaForSequenceClassification"],
        "id2label": {"0": "no", "1": "maybe", "2": "yes"},
        "label2id": {"no": 0, "maybe": 1, "yes": 2},
        "problem_type": "single_label_classification",
        "pool": "cls",
        "torch_dtype": "float32",
    }
    one = classifier("bert", pool="mean", labels=1)
    export_model(nnx.state(one), one.config, tmp_path / "one")
    content = json.loads((tmp_path / "one/config.json").read_text())
    assert content["problem_type"] == "regression"
    assert content["architectures"] == ["BertModel"]


@pytest.mark.parametrize(("name", "prefix"), [("deberta", ""), ("gpt2", "transformer.")])
def test_what_differs_from_the_source(name, prefix, tmp_path):
    """By tensors; GPT-2's holds queries, keys and values, of which one is compared.

    The published GPT-2's names have no prefix.
    """
    model = classifier(name) if name in ENCODERS else random_decoder(name)
    export_model(nnx.state(model), model.config, tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    save_file({key.removeprefix(prefix): x for key, x in tensors.items()}, tmp_path / SINGLE)
    parts = parts_of(jax.tree.map(lambda x: 1.5 * x, nnx.state(model)))
    paths = ["layers/attention/query/kernel", "layers/down/kernel"]
    found = changed_from(parts, paths, model.config, tmp_path)
    assert len(found) == 2 * model.config.num_hidden_layers
    np.testing.assert_allclose(list(found.values()), 0.5, rtol=1e-6)
