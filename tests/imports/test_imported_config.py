"""The config of an imported adapter makes that adapter, and no other."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lora_jax as lj
import variants
from configs import quickstart
from experiments.imports.imported_run import config_of
from experiments.setup import from_config
from experiments.setup.config import parse
from lora_jax.interchange.load_peft import Loaded

PARAMS = {
    "up": {"kernel": jnp.ones((4, 6, 6))},
    "other": {"up": {"kernel": jnp.ones((6, 6))}, "bias": jnp.ones(6)},
}
X = np.ones((2, 6), np.float32)


def forward(params, x):
    for layer in range(4):
        x = x @ params["up"]["kernel"][layer]
    return x @ params["other"]["up"]["kernel"] + params["other"]["bias"][None]


def made(targets, also_train=()):
    adapted = lj.adapt(forward, targets=targets, also_train=also_train)
    return Loaded(adapted, *adapted.init(jax.random.key(0), PARAMS, X), {})


def lora(**settings):
    return variants.make("lora", **settings)


def some(which, **settings):
    return {lj.layers("(?<!/)up/kernel", which): lora(**settings)}


CASES = {
    "layers": {**some(0, rank=1), **some(2, rank=2, alpha=3.0), **some(3, rank=2, alpha=3.0)},
    "all layers but one": some(slice(1, None), rank=2),
    "two methods": {"other/up/kernel": variants.make("vera", rank=3), **some(0, rank=1)},
    # A run sets AdaLoRA's steps, and takes VeRA's and VB-LoRA's sizes from their files.
    "steps": {"other/up/kernel": variants.make("adalora", rank=3, target_rank=2)},
    "sizes": {"other/up/kernel": variants.make("vblora", rank=2, vector_length=2)},
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_config_makes(name):
    found = made(CASES[name], ["other/bias"])
    plain = config_of(quickstart.get_config().to_dict(), found).plain
    config = parse(json.loads(json.dumps(plain)))  # as its file has it
    again = made(from_config.make_targets(config, steps=7), config.also_train)
    assert again.frozen.spec == found.frozen.spec
    assert again.trainable["params"].keys() == {"other/bias"}


def test_what_a_config_leaves_open_comes_from_the_adapters_method():
    plain = quickstart.get_config().to_dict()
    found = made({"other/up/kernel": variants.make("ia3")})
    config = config_of(plain, found)
    assert config.optimizer.learning_rate == variants.find("ia3").suggested.small
    assert config.optimizer.learning_rate != parse(plain).optimizer.learning_rate
    assert config.experiment == "imported" and config.start_from is None
