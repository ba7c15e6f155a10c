"""Families are found by their files, and a file is all that one needs."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
from drawn_model import drawn, run
from flax import nnx
from make_fixtures import bert, deberta
from make_fixtures.decoders import CASES
from small_decoder import random_decoder

from lora_jax.interchange.names import names_of
from lora_jax.models import families
from lora_jax.models.parts.family import shardings_of
from lora_jax.models.parts.modules import LayerNorm, RMSNorm
from lora_jax.models.published.export import export_model
from lora_jax.models.published.load import kind_of, load_decoder, read_encoder_config
from lora_jax.partition import flatten
from lora_jax.sharding.mesh import make_mesh

NAMES = ("bert", "deberta-v2", "gpt2", "llama", "mistral", "qwen2", "qwen3", "roberta")
FILE = """
import dataclasses
from lora_jax.models.families import qwen3
from lora_jax.models.parts.config_checks import integer

@dataclasses.dataclass(frozen=True)
class OwnConfig(qwen3.Qwen3Config):
    model_type: str = "own-family"
    head_dim: int = integer(6, null=0)

names = {ours: theirs.replace("mlp", "feed") for ours, theirs in qwen3.FAMILY.names.items()}
FAMILY = dataclasses.replace(qwen3.FAMILY, config=OwnConfig, architecture="Own", names=names)
"""


def test_each_file_is_found_by_its_model_type():
    assert tuple(families.all_families()) == NAMES
    for name in NAMES:
        family = families.find(name)
        assert family.config().model_type == name == family.model_type
        assert family.kind == ("decoder" if families.is_decoder(name) else "encoder")
    decoders = families.all_families("decoder")
    assert tuple(decoders) == NAMES[2:7]
    for kind, name in (("encoder", "llama"), ("decoder", "bert")):
        with pytest.raises(ValueError, match=f"model_type '{name}' is not supported"):
            families.find(name, kind)
    for name in ("deberta_v2", "__init__", "qwen", "", None, 3, ["bert"]):
        assert not families.is_decoder(name)
        with pytest.raises(ValueError, match=r"is not supported; nearest: .*supported: bert, deb"):
            families.find(name)


def test_a_file_is_all_that_a_family_needs(tmp_path, monkeypatch):
    (tmp_path / "own_family.py").write_text(FILE)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    content = {**CASES["qwen3"], "model_type": "own-family", "vocab_size": 24}
    del content["head_dim"]
    config, family = families.read(content), families.find("own-family")
    model = drawn(lambda: family.model(config, rngs=nnx.Rngs(0)))
    assert model.layers.attention.query.kernel.shape == (2, 16, 4 * 6)

    export_model(nnx.state(model), config, tmp_path / "out")
    assert kind_of(tmp_path / "out") == "decoder"
    leaves, _ = flatten(nnx.state(model))
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    shardings = shardings_of(model, family.rules, mesh)
    for options in ({}, {"shardings": shardings}):
        again = load_decoder(tmp_path / "out", **options)
        for path, leaf in flatten(nnx.state(again))[0].items():
            np.testing.assert_array_equal(leaf, leaves[path], err_msg=path)
    ids = jnp.asarray([[3, 1, 4, 1]])
    np.testing.assert_array_equal(run(load_decoder(tmp_path / "out"), ids), run(model, ids))
    place = names_of(config).place("layers/gate/kernel", 1)
    assert place == ("model.layers.1.feed.gate_proj.weight", True, None)
    with pytest.raises(ValueError, match=r"out.config\.json: model_type 'own-family' is not supp"):
        read_encoder_config(tmp_path / "out")
    sys.modules.pop("lora_jax.models.families.own_family")


def random_encoder(content, **changes):
    config = families.read({**content, **changes})
    return drawn(lambda: families.family_of(config).model(config, 2, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("name", "norms"), [("bert", 3), ("everything", 5), ("gpt2", 3), ("qwen3", 5)]
)
def test_every_norm_has_the_epsilon_of_the_config(name, norms):
    if name in bert.CASES:
        model = random_encoder(bert.CASES[name][0], layer_norm_eps=0.03)
    elif name in deberta.CASES:
        model = random_encoder(deberta.CASES[name][0], layer_norm_eps=0.03)
    else:
        model = random_decoder(name, layer_norm_epsilon=0.03, rms_norm_eps=0.03)
    modules = (each for _, each in nnx.iter_modules(model))
    found = [each.epsilon for each in modules if isinstance(each, LayerNorm | RMSNorm)]
    assert found == [0.03] * norms
