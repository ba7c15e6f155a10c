"""IA3 of queries, keys and values that torch joins, as GPT-2's; the formula is PEFT's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lora_jax as lj
import variants
from lora_jax.interchange.names import Names
from lora_jax.models.published.placed import Place

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((4, 6)).astype(np.float32)
PARAMS = {
    name: {
        "kernel": jnp.asarray(RANDOM.standard_normal((6, 3)), jnp.float32),
        "bias": jnp.asarray(RANDOM.standard_normal(3), jnp.float32),
    }
    for name in "qkv"
}
KERNEL, BIAS = (
    np.concatenate([PARAMS[n][leaf] for n in "qkv"], axis=-1) for leaf in ("kernel", "bias")
)
TENSOR = "base_model.model.c_attn.ia3_l"


def apply(params, x):
    return [x @ params[n]["kernel"] + params[n]["bias"][None] for n in "qkv"]


def place(path, layer):
    leaf = "bias" if path.endswith("bias") else "weight"
    return Place(f"c_attn.{leaf}", False, "qkv".index(path[0]))


NAMES = Names(place, lambda path: False)


def begun(targets):
    return lj.adapt(apply, targets=targets).init(jax.random.key(0), PARAMS, X)


@pytest.mark.parametrize("inputs", [False, True])
def test_ia3_is_read_and_written_again(inputs, tmp_path):
    scale = RANDOM.standard_normal((1, 6) if inputs else (9, 1)).astype(np.float32)
    save_file({TENSOR: scale}, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "IA3", "feedforward_modules": ["c_attn"] if inputs else []}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    loaded = lj.load_peft(tmp_path, variants.from_peft, NAMES, apply, PARAMS, X)
    found = np.concatenate(loaded.adapted.apply(*loaded[1:3], X), axis=1)
    expected = X * scale @ KERNEL + BIAS if inputs else (X @ KERNEL + BIAS) * scale.T
    np.testing.assert_allclose(found, expected, atol=1e-5)
    lj.save_peft(tmp_path / "again", *loaded[1:3], NAMES)
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    np.testing.assert_array_equal(again[TENSOR], scale)


def test_queries_alone_leave_the_other_thirds(tmp_path):
    trainable, frozen = begun({"q/kernel": variants.make("ia3", biases=True)})
    trainable = jax.tree.map(lambda x: x * jnp.arange(2.0, 5.0), trainable)
    lj.save_peft(tmp_path, trainable, frozen, NAMES)
    found = load_file(tmp_path / "adapter_model.safetensors")[TENSOR]
    np.testing.assert_array_equal(found[:, 0], [2, 3, 4, 1, 1, 1, 1, 1, 1])


def test_what_is_not_written_or_read(tmp_path):
    for variant, said in (
        (variants.make("ia3", scales="inputs"), "inputs of .* alike.*; merge the weights instead"),
        (variants.make("shira", rank=1), "SHIRA of them is not written; merge the weights instead"),
    ):
        trainable, frozen = begun({"(q|k)/kernel": variant})
        with pytest.raises(ValueError, match=said):
            lj.save_peft(tmp_path / "out", trainable, frozen, NAMES)
    save_file({TENSOR: np.ones((6, 2), np.float32)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "HRA", "r": 2}')
    with pytest.raises(ValueError, match=r"HRA of a weight that joins .* is not read; merge it in"):
        lj.load_peft(tmp_path, variants.from_peft, NAMES, apply, PARAMS, X)
