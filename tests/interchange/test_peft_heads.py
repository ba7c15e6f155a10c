"""Heads in PEFT's folders that are more than one layer: with SEQ_CLS, PEFT saves them whole."""

import json

import jax
import jax.numpy as jnp
import pytest
from safetensors.numpy import load_file

import lora_jax as lj
import variants

NAMES = lj.names_from_patterns(
    {
        "up/kernel": "roberta.up",
        "pooler/kernel": "classifier.dense",
        "classifier/kernel": "classifier.out_proj",
    }
)


def forward(params, x):
    for name in ("up", "pooler", "classifier"):
        x = x @ params[name]["kernel"] + params[name]["bias"][None]
    return x


def save(folder, also_train):
    layer = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    params = dict.fromkeys(("up", "pooler", "classifier"), layer)
    lora = variants.make("lora", rank=1)
    adapted = lj.adapt(forward, lora, "up/kernel", also_train=also_train)
    run = adapted.init(jax.random.key(0), params, jnp.ones((1, 4)))
    lj.save_peft(folder, *run, NAMES, task_type="SEQ_CLS")


def test_a_head_of_two_layers_is_one_module(tmp_path):
    save(tmp_path, "(pooler|classifier)/.*")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["classifier"]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    head = {f"{part}.{leaf}" for part in ("dense", "out_proj") for leaf in ("weight", "bias")}
    assert {f"base_model.model.classifier.{each}" for each in head} <= tensors.keys()


def test_half_a_head_is_refused(tmp_path):
    said = "with SEQ_CLS, PEFT saves 'classifier' whole, and 'classifier.dense' does not train"
    with pytest.raises(ValueError, match=said):
        save(tmp_path, "classifier/.*")
    assert not any(tmp_path.iterdir())
