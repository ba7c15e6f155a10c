"""What all families have in common: a number of a config acts wherever the family has its kind."""

import pytest
from drawn_model import drawn
from flax import nnx
from make_fixtures import bert, deberta
from small_decoder import random_decoder

from lora_jax.models.families.encoders import family_of
from lora_jax.models.parts.modules import LayerNorm, RMSNorm


def random_encoder(content, **changes):
    family = family_of(content)
    config = family.config.from_json({**content, **changes})
    return drawn(lambda: family.classifier(config, 2, rngs=nnx.Rngs(0)))


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
