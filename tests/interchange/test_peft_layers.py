"""PEFT folders of one stack whose layers differ in what they have."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lora_jax as lj
import variants

NAMES = lj.names_from_patterns({"up/kernel": "m.layers.{layer}.up"})
RANDOM = np.random.default_rng(0)
PARAMS = {
    "up": {
        "kernel": jnp.asarray(RANDOM.standard_normal((2, 3, 3)), jnp.float32),
        "bias": jnp.asarray(RANDOM.standard_normal((2, 3)), jnp.float32),
    }
}
X = np.ones((1, 3), np.float32)
PAIR = {"lora_A.weight": np.ones((1, 3), np.float32), "lora_B.weight": np.ones((3, 1), np.float32)}
WEIGHTS = "adapter_model.safetensors"


def forward(params, x):
    def layer(x, each):
        return jnp.tanh(x @ each["kernel"] + each["bias"][None]), None

    return jax.lax.scan(layer, x, params["up"])[0]


def load(folder):
    return lj.load_peft(folder, variants.from_peft, NAMES, forward, PARAMS, X)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"target_modules": r".*\.0\.up"}, "target_modules does not name"),
        ({"target_modules": ["up"], "exclude_modules": ["1.up"]}, "exclude_modules leaves out"),
        ({"target_modules": ["up"], "layers_to_transform": 0}, "layers_to_transform leaves out"),
    ],
)
def test_tensors_that_the_config_leaves_out(config, said, tmp_path):
    """PEFT does not apply them."""
    settings = {"peft_type": "LORA", "r": 1, **config}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    each = {
        f"base_model.model.m.layers.{n}.up.{name}": x for n in (0, 1) for name, x in PAIR.items()
    }
    save_file(each, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=f"config.json: {said} 'm.layers.1.up', which has tensors"):
        load(tmp_path)


def test_a_bias_that_trains_in_layers_without_an_adapter(tmp_path):
    """Those layers are saved whole, and their weights must be the base's."""
    targets = {lj.layers("up/kernel", 0): variants.make("lora", rank=1)}
    adapted = lj.adapt(forward, targets=targets, also_train="up/bias")
    trainable, frozen = adapted.init(jax.random.key(0), PARAMS, X)
    trainable = jax.tree.map(lambda x: x + 0.3, trainable)
    lj.save_peft(tmp_path, trainable, frozen, NAMES)
    loaded = load(tmp_path)
    found, expected = loaded.adapted.apply(*loaded[1:3], X), adapted.apply(trainable, frozen, X)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["base_model.model.m.layers.1.up.weight"][0, 0] += 1
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"layers.1.up.weight' is not .*: read the merged model"):
        load(tmp_path)
