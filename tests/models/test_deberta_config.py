"""What a DeBERTa config.json says: refused, read, and how large the published models are."""

import dataclasses

import jax
import pytest
from flax import nnx
from make_fixtures.deberta import CASES

from lora_jax.models.families.deberta_v2 import DebertaClassifier, DebertaConfig

WRONG = [
    ({"model_type": "deberta"}, "model_type 'deberta' is not supported; supported: deberta-v2"),
    ({"pos_att_type": "p2c|p2p"}, "pos_att_type 'p2p' is not supported; supported: c2p, p2c"),
    ({"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd 'batch_norm' is not supported"),
    ({"attention_head_size": 4}, "attention_head_size 4 is not supported, only 8"),
    ({"pooler_hidden_size": 8}, "pooler_hidden_size 8 is not supported, only 16"),
    ({"conv_kernel_size": 4}, "conv_kernel_size must be odd, got 4"),
    ({"conv_groups": 3}, "hidden_size 16 is not a multiple of conv_groups 3"),
    ({"position_buckets": 1}, "position_buckets 1 must be at least 2"),
    ({"position_buckets": 60}, "position_buckets 60 .* leave room for distances of up to 24"),
    ({"hidden_act": "mish"}, "hidden_act 'mish' is not supported; supported: gelu, "),
    ({"conv_act": "mish"}, "conv_act 'mish' is not supported"),
    ({"share_att_key": 1}, "share_att_key must be true or false, got 1"),
    ({"pooler_dropout": 1.0}, r"pooler_dropout must be a number in \[0, 1\), got 1.0"),
    ({"num_attention_heads": 5}, "hidden_size 16 is not a multiple of num_attention_heads 5"),
    ({"is_decoder": True}, "is_decoder=True is not supported"),
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
