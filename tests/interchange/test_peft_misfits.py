"""PEFT folders of every method whose tensors or numbers do not fit: one line each, at no cost."""

import json
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import lora_jax as lj
import variants

NAMES = lj.names_from_patterns({r"(up|down)/kernel": "{0}"})
PARAMS = {
    "up": {"kernel": jnp.ones((8, 12)), "bias": jnp.zeros(12)},
    "down": {"kernel": jnp.ones((12, 4)), "bias": jnp.zeros(4)},
}
X = np.ones((2, 8), np.float32)


def forward(params, x):
    for each in (params["up"], params["down"]):
        x = x @ each["kernel"] + each["bias"][None]
    return x


def load(folder, config, shapes, dtype=np.float32):
    """`load_peft` of tensors of ones, whose names are given without `base_model.model.`."""
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {f"base_model.model.{name}": np.ones(s, dtype) for name, s in shapes.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return lj.load_peft(folder, variants.from_peft, NAMES, forward, PARAMS, X)


def test_a_huge_rank_of_adalora_takes_no_memory(tmp_path):
    config = {"peft_type": "ADALORA", "init_r": 10**7, "total_step": 10}
    shapes = {"up.lora_A": (2, 8), "up.lora_B": (12, 2), "up.lora_E": (2, 1)}
    tracemalloc.start()
    with pytest.raises(ValueError, match="10000000 by rank_pattern and init_r"):
        load(tmp_path, config, shapes)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
