"""Reading and writing published decoders, and what every kind of bad one is answered."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from decoder_fixtures import NAMES, SHAPES
from flax import nnx
from make_fixtures.bert import save_checkpoint
from make_fixtures.decoders import CASES, random_tensors
from safetensors.numpy import load_file, save_file
from small_decoder import random_decoder

from lora_jax.models.published.export import export_model
from lora_jax.models.published.load import decoder_from, load_decoder
from lora_jax.models.published.weight_files import SINGLE, Weights

QUERY = "model.layers.1.self_attn.q_proj.weight"


def checkpoint(folder, name="llama", config=None, **replaced):
    """A published folder; a tensor replaced by None is left out."""
    tensors = {**random_tensors(SHAPES[name], NAMES.index(name)), **replaced}
    tensors = {key: value for key, value in tensors.items() if value is not None}
    return save_checkpoint(folder, config or CASES[name], tensors)


def same(first, second):
    pairs = [jax.tree_util.tree_leaves_with_path(nnx.state(each)) for each in (first, second)]
    for (path, one), (other_path, other) in zip(*pairs, strict=True):
        assert path == other_path and one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, err_msg=str(path))


@pytest.mark.parametrize("name", ["llama", "llama_biases", "llama_yarn", "qwen2", "qwen3", "gpt2"])
def test_what_is_written_is_read_again(name, tmp_path):
    model = random_decoder(name)
    export_model(nnx.state(model), model.config, tmp_path)
    again = load_decoder(tmp_path)
    same(model, again)
    assert again.config == model.config
    # and the tensors are those that torch's model has
    stored = load_file(tmp_path / SINGLE)
    assert {k: list(v.shape) for k, v in stored.items()} == SHAPES[name]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_tensors_go_out_as_they_came_in(name, tmp_path):
    folder = checkpoint(tmp_path / "in", name)
    model = load_decoder(folder)
    export_model(nnx.to_pure_dict(nnx.state(model)), model.config, tmp_path / "out")
    before, after = (load_file(path / SINGLE) for path in (folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        np.testing.assert_array_equal(tensor.astype(np.float32), after[key], err_msg=key)


def test_half_precision_is_kept(tmp_path):
    model = random_decoder("llama", options={"param_dtype": jnp.bfloat16})
    export_model(nnx.state(model), model.config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_file(tmp_path / SINGLE)[QUERY].dtype == ml_dtypes.bfloat16
    same(load_decoder(tmp_path, param_dtype=jnp.bfloat16), model)
    assert load_decoder(tmp_path).head.kernel.dtype == jnp.float32


def test_shards(tmp_path):
    model = random_decoder("gpt2")
    export_model(nnx.state(model), model.config, tmp_path)
    assert [path.name for path in tmp_path.glob("model*")] == [SINGLE]
    export_model(nnx.state(model), model.config, tmp_path, shard_bytes=4000)
    files = sorted(path.name for path in tmp_path.glob("model*.safetensors"))
    assert SINGLE not in files and len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(SHAPES["gpt2"])
    same(load_decoder(tmp_path), model)
    export_model(nnx.state(model), model.config, tmp_path)
    assert [path.name for path in tmp_path.glob("model*")] == [SINGLE]


@pytest.mark.parametrize("name", ["llama3", "gpt2"])
def test_names_without_the_prefix_and_tensors_that_older_checkpoints_hold(name, tmp_path):
    """The published gpt2 is such, with its masks; old Llamas hold their frequencies."""
    tensors = random_tensors(SHAPES[name], NAMES.index(name))
    whole = load_decoder(save_checkpoint(tmp_path / "whole", CASES[name], tensors))
    prefix, masks = ("transformer.", "h.0.attn.bias") if name == "gpt2" else ("model.", None)
    bare = {key.removeprefix(prefix): value for key, value in tensors.items()}
    extra = {masks or "layers.0.self_attn.rotary_emb.inv_freq": np.ones((1, 1, 4, 4))}
    extra["lm_head.weight"] = np.zeros((23, 16))  # a tied head, stored all the same
    same(load_decoder(save_checkpoint(tmp_path / "bare", CASES[name], bare | extra)), whole)


def test_options_reach_the_model(tmp_path):
    folder = checkpoint(tmp_path)
    options = {"dtype": jnp.bfloat16, "remat": "dots_saveable", "implementation": "xla"}
    model = load_decoder(folder, **options)
    assert {name: getattr(model, name) for name in options} == options
    for wrong in ({"remat": "all"}, {"implementation": "flash"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            load_decoder(folder, **wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({QUERY: None}, f"no tensor '{QUERY}'; nearest: 'model.layers.1.self_attn"),
        ({"lm_head.weight": None}, "no tensor 'lm_head.weight'; nearest:"),
        ({"model.norm.weight": None}, "no tensor 'model.norm.weight'; nearest:"),
        (
            {QUERY: np.ones((16, 8))},
            rf"'{QUERY}' has shape \(16, 8\), config.json asks for \(16, 1",
        ),
        ({QUERY: np.ones((16, 16), int)}, f"'{QUERY}' is I64, expected one of"),
        ({QUERY: np.full((16, 16), np.nan)}, f"'{QUERY}' holds NaN or an infinity"),
        (
            {"model.layers.0.self_attn.q_proj.bias": np.ones(16)},
            "does not use tensor 'model.layers.0.self_attn.q_proj.bias'; nearest that it uses",
        ),
        (
            {"model.layers.2.mlp.up_proj.weight": np.ones((20, 16))},
            "a llama with the 2 layers of config.json does not use tensor 'model.layers.2.mlp.up",
        ),
        ({"config": {**CASES["llama"], "num_hidden_layers": 3}}, "no tensor 'model.layers.2"),
        ({"config": {**CASES["llama"], "model_type": "qwen2"}}, "no tensor .*_proj.bias'; nearest"),
        ({"config": {**CASES["llama"], "model_type": "lama"}}, "'lama' is not .* nearest: 'llama'"),
        (
            {"config": {**CASES["llama"], "vocab_size": -1}},
            "config.json: vocab_size must be an int",
        ),
    ],
)
def test_wrong_checkpoints_are_named(change, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        load_decoder(checkpoint(tmp_path, **change))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        load_decoder(tmp_path)
    folder = checkpoint(tmp_path / "model")
    (folder / SINGLE).unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        load_decoder(folder)


def test_all_is_checked_before_anything_is_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(Weights, "read", lambda self, name: read.append(name))
    with pytest.raises(ValueError, match="no tensor"):
        load_decoder(checkpoint(tmp_path, **{"model.norm.weight": None}))
    assert read == []


def test_a_tensor_at_a_time_is_held(tmp_path, monkeypatch):
    """Beside the model there is one stacked parameter, and one tensor of it."""
    import gc
    import weakref

    read, alive = Weights.read, []

    def held():
        return sum(each() is not None for each in alive)

    def watched(self, name):
        if held() > 1:  # or is it waiting to be collected?
            gc.collect()
        assert held() <= 1
        tensor = read(self, name)
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(Weights, "read", watched)
    load_decoder(checkpoint(tmp_path, "gpt2"))
    assert len(alive) == 4 + 2 * (12 + 4)  # joined projections are read for each of their thirds


def test_any_source_of_tensors_will_do(tmp_path):
    """What a reader of another format has to offer."""

    class Memory:
        folder = tmp_path
        tensors = random_tensors(SHAPES["qwen3"], 0)

        def names(self):
            return list(self.tensors)

        def check(self, name, shape):
            assert self.tensors[name].shape == shape

        def read(self, name):
            return self.tensors[name]

    config = random_decoder("qwen3").config
    model = decoder_from(Memory(), config, param_dtype=jnp.float32)
    save_file(Memory.tensors, tmp_path / SINGLE)
    (tmp_path / "config.json").write_text(json.dumps(CASES["qwen3"]))
    same(model, load_decoder(tmp_path))


def test_parameters_that_are_not_a_decoders(tmp_path):
    model = random_decoder("llama")
    with pytest.raises(ValueError, match="no embedding/embedding: not those of a decoder"):
        export_model({"norm": {"scale": jnp.ones(3)}}, model.config, tmp_path)
    with pytest.raises(ValueError, match="'pooler/kernel' is not a parameter of a llama decoder"):
        params = nnx.to_pure_dict(nnx.state(model)) | {"pooler": {"kernel": jnp.ones((2, 2))}}
        export_model(params, model.config, tmp_path)
    assert not list(tmp_path.iterdir())
