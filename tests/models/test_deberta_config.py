"""What a DeBERTa config.json says: refused, read, and how large the published models are."""

import dataclasses

import jax
import pytest
from flax import nnx
from make_fixtures.deberta import CASES

from lora_jax.models.families.deberta_v2 import DebertaClassifier, DebertaConfig

WRONG = [
    ({"model_type": "deberta"}, "model_type must be deberta-v2, got 'deberta'"),
    ({"pos_att_type": "p2c|p2p"}, "pos_att_type must be of c2p and p2c"),
    ({"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd must be one of none, layer_norm"),
    ({"conv_act": "mish"}, "conv_act must be one of gelu, .*'mish'"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        DebertaConfig.from_json({**CASES["v3"][0], **changes})
    assert "\n" not in str(caught.value)


def test_config_defaults_and_round_trip():
    config = DebertaConfig.from_json({**CASES["v3"][0], "pos_att_type": "p2c|c2p"})
    assert config.pos_att_type == ("p2c", "c2p")
    assert (config.embedding_size, config.span, config.relative_positions) == (16, 8, 24)
    assert config.head_dropout == 0.1
    assert dataclasses.replace(config, cls_dropout=0.0).head_dropout == 0.0
    assert DebertaConfig.from_json(config.to_json()) == config
    assert hash(config) == hash(DebertaConfig.from_json(config.to_json()))
    assert DebertaConfig.from_json({"model_type": "deberta-v2"}) == DebertaConfig()
    assert DebertaConfig().max_tokens == 512


_BASE = {**CASES["v3"][0], "vocab_size": 128100, "hidden_size": 768, "num_hidden_layers": 12}
_BASE |= {"num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 512}
_BASE |= {"position_buckets": 256, "layer_norm_eps": 1e-7}
_XXL = {**_BASE, "hidden_size": 1536, "num_hidden_layers": 48, "num_attention_heads": 24}
_XXL |= {"intermediate_size": 6144, "attention_head_size": 64, "conv_kernel_size": 3}


@pytest.mark.parametrize(("content", "expected"), [(_BASE, 184_423_682), (_XXL, 1_566_913_538)])
def test_published_sizes(content, expected):
    """As transformers counts microsoft/deberta-v3-base and -v2-xxlarge with two labels."""
    config = DebertaConfig.from_json(content)
    abstract = nnx.eval_shape(lambda: DebertaClassifier(config, 2, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract))) == expected
