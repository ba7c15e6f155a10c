"""A GGUF adapter: llama.cpp's formula on converted weights gives the merged, converted weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_decoder import random_decoder, random_ids

import lora_jax as lj
import variants
from lora_jax.interchange.names import names_of
from lora_jax.interchange.save_plain_lora import write_gguf_lora

gguf = pytest.importorskip("gguf")
from gguf_files import as_converted  # noqa: E402

# a decoder of the fixtures -> its architecture in llama.cpp
CASES = {
    "mistral": ("llama", {}),
    "qwen2": ("qwen2", {"use_sliding_window": False}),
    "gpt2": ("gpt2", {}),
}


def moved(trainable):
    random = np.random.default_rng(2)
    return jax.tree.map(
        lambda x: x + jnp.asarray(0.3 * random.standard_normal(x.shape), x.dtype), trainable
    )


def read(path):
    """The metadata and tensors of a file, by the package alone."""
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    return fields, {each.name: np.array(each.data) for each in reader.tensors}


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_computes_what_is_merged(name, tmp_path):
    arch, changes = CASES[name]
    model = random_decoder(name, **changes)
    forward, params = lj.from_nnx(model)
    targets = {
        "layers/(attention/.*|up)/kernel": variants.make("rslora", rank=1, alpha=5.0),
        "layers/down/kernel": variants.make("lora", rank=2, alpha=3.0),
    }
    adapted = lj.adapt(forward, targets=targets)
    trainable, frozen = adapted.init(jax.random.key(0), params, random_ids())
    trainable = moved(trainable)
    names = names_of(model.config)
    lj.save_plain_lora(tmp_path / "plain", trainable, frozen, names, served=None)
    path = write_gguf_lora(tmp_path / "adapter.gguf", tmp_path / "plain", model.config)

    fields, tensors = read(path)
    assert fields["general.type"] == "adapter" and fields["adapter.type"] == "lora"
    assert fields["general.architecture"] == arch
    alpha = fields["adapter.lora.alpha"]
    graph, _ = nnx.split(model)
    merged = nnx.merge(graph, adapted.merge(trainable, frozen))
    after = dict(as_converted(merged, arch))
    changed = 0
    for weight, before in as_converted(model, arch):
        a, b = (tensors.pop(f"{weight}.lora_{each}", None) for each in "ab")
        if a is not None:
            rank = b.shape[1]
            before = before + alpha / rank * (b @ a)
            changed += 1
        np.testing.assert_allclose(before, after[weight], atol=2e-6, err_msg=weight)
    assert tensors == {} and changed == model.config.num_hidden_layers * (
        4 if arch == "gpt2" else 6
    )


def test_a_file_has_no_such_tensor(tmp_path):
    """A folder of another family, say."""
    names = lj.names_from_patterns({"up/kernel": "encoder.{layer}.up"})
    params = {"up": {"kernel": jnp.ones((1, 6, 6))}}
    adapted = lj.adapt(lambda p, x: x @ p["up"]["kernel"][0], variants.make("lora", rank=1))
    trainable, frozen = adapted.init(jax.random.key(0), params, jnp.ones((1, 6)))
    lj.save_plain_lora(tmp_path / "plain", trainable, frozen, names, served=None)
    config = random_decoder("llama").config
    with pytest.raises(ValueError, match=r"of a llama have no tensor 'encoder\.0\.up\.weight'"):
        write_gguf_lora(tmp_path / "adapter.gguf", tmp_path / "plain", config)
    assert not (tmp_path / "adapter.gguf").exists()
