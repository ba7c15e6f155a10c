"""Configs of the Llama family and their rotary frequencies, against the papers' formulas."""

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from make_fixtures.decoders import CASES

from lora_jax.models import families
from lora_jax.models.families.llama import FULL, SLIDING, LlamaConfig
from lora_jax.models.parts.rope import Rope, frequencies, rotate, rotation
from lora_jax.models.published.load import read_decoder_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def config(**changes):
    return families.read({**CASES["llama"], **changes}, "decoder")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "gemma"},
            "model_type 'gemma' is not supported; nearest: .*: gpt2, llama,",
        ),
        ({"model_type": None}, "model_type None is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config=.* plain decoders only"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder=True is not supported"),
        ({"hidden_size": 18}, "hidden_size 18 is not a multiple of num_attention_heads 4"),
        ({"head_dim": 5}, "head_dim must be even, as rope turns its halves, got 5"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_he"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be an integer >= 1, got 0"),
        ({"vocab_size": "23"}, "vocab_size must be an integer >= 1, got '23'"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number, got 0"),
        ({"hidden_act": "swiglu"}, "hidden_act 'swiglu' is not supported; supported: gelu"),
        ({"attention_dropout": 1.0}, r"attention_dropout must be a number in \[0, 1\), got 1.0"),
        ({"attention_bias": 1}, "attention_bias must be true or false, got 1"),
        ({"eos_token_id": [1, -1]}, "eos_token_id must be an integer >= 0, got -1"),
        ({"rope_theta": -1.0}, "rope_theta must be a positive number, got -1.0"),
        ({"rope_scaling": {"type": "su"}}, "rope_type 'su' is not supported; supported: default,"),
        ({"rope_scaling": {"type": ["su"]}}, r"rope_type \['su'\] is not supported"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object, got 'linear'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_type 'linear' needs factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "must be >= 1: 0.5"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor must be a positive number"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, "'llama3' needs low_freq_factor"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "high_freq_factor 4.0 must be abo"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported, only 1.0"),
        ({"rope_parameters": {FULL: {"rope_theta": 1e6}}}, "rope_parameters by layer type are not"),
        ({"rope_interleaved": True}, "rope_interleaved True is not supported, only False"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window must be an integer >= 1"),
        ({"layer_types": [FULL]}, "layer_types names 1 layers, there are 2"),
        ({"layer_types": "full"}, "layer_types must be a list of words, got 'full'"),
        ({"layer_types": [FULL, "chunked"]}, "layer_types 'chunked' is not supported"),
        ({"layer_types": [FULL, SLIDING]}, "but there is no sliding_window"),
        (
            {"model_type": "mistral", "sliding_window": 3, "layer_types": [FULL, SLIDING]},
            "layer_types of a mistral must all be sliding_attention",
        ),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        config(**changes)
    assert "\n" not in str(caught.value)


def test_defaults_of_each_model_type():
    defaults = {kind: families.read({"model_type": kind}) for kind in FAMILIES}
    assert defaults["llama"] == LlamaConfig()
    assert [c.num_key_value_heads for c in defaults.values()] == [32, 8, 32, 32]
    assert [c.head_dim for c in defaults.values()] == [128] * 4
    assert [c.sliding_window for c in defaults.values()] == [None, 4096, None, None]
    assert [c.biases.inputs for c in defaults.values()] == [False, False, True, False]
    assert not any(c.biases.output or c.biases.feed_forward for c in defaults.values())
    assert {c.rope for c in defaults.values()} == {Rope()}
    assert len({hash(c) for c in defaults.values()}) == 4


FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def test_nulls_that_mean_something():
    mistral = {"model_type": "mistral", "num_hidden_layers": 2}
    assert families.read({**mistral, "sliding_window": None}).slides == (False, False)
    assert families.read(mistral).slides == (True, True)
    assert families.read({**mistral, "num_key_value_heads": None}).num_key_value_heads == 32
    assert families.read({**mistral, "layer_types": None}).slides == (True, True)
    assert config(eos_token_id=None).eos_token_id == ()
    assert config(eos_token_id=[4, 7]).eos_token_id == (4, 7)


TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
NULLABLE = {
    "llama": {"num_key_value_heads", "head_dim", "sliding_window", "layer_types", *TOKENS},
    "gpt2": {"n_inner", *TOKENS},
}


@pytest.mark.parametrize("kind", NULLABLE)
def test_a_null_that_means_nothing_is_refused(tmp_path, kind):
    fields = [field.name for field in dataclasses.fields(families.find(kind).config)]
    for name in [name if name != "rope" else "rope_theta" for name in fields]:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, name: None}))
        if name in NULLABLE[kind]:
            read_decoder_config(tmp_path)
            continue
        with pytest.raises(ValueError, match=rf"config\.json: {name}\b.*(null|None)"):
            read_decoder_config(tmp_path)


def test_which_layers_slide():
    qwen = {**CASES["qwen2"], "num_hidden_layers": 4, "max_window_layers": 2}
    assert families.read(qwen).slides == (False, False, True, True)
    off = families.read({**qwen, "use_sliding_window": False})
    assert off.slides == (False,) * 4 and off.sliding_window is None
    own = [SLIDING, FULL, SLIDING, FULL]
    assert families.read({**qwen, "layer_types": own}).slides == (True, False) * 2


@pytest.mark.parametrize("name", [name for name in CASES if "gpt2" not in name])
def test_round_trip_through_json(name):
    own = families.read(CASES[name])
    assert families.read(json.loads(json.dumps(own.to_json()))) == own
    assert config(eos_token_id=[4, 7]).to_json()["eos_token_id"] == [4, 7]
    assert config(eos_token_id=None).to_json()["eos_token_id"] is None


# ---- rotary frequencies --------------------------------------------------------------------------


def test_the_forms_in_which_scalings_are_published():
    old = config(rope_theta=5e5, rope_scaling=LLAMA3).rope
    new = config(rope_parameters={**LLAMA3, "rope_theta": 5e5}).rope
    assert old == new == Rope(5e5, **LLAMA3)
    outside = {k: v for k, v in LLAMA3.items() if not k.startswith("original")}
    outside = config(rope_scaling=outside, original_max_position_embeddings=77).rope
    assert outside.original_max_position_embeddings == 77
    assert config(rope_scaling=YARN).rope == Rope(
        rope_type="yarn", factor=4.0, **{"original_max_position_embeddings": 32768}
    )
    inferred = config(rope_scaling={"type": "yarn", "factor": 2.0}).rope
    assert inferred.original_max_position_embeddings == CASES["llama"]["max_position_embeddings"]
    assert config(rope_scaling=None).rope == config(rope_parameters=None).rope == Rope()
    assert config(rope_parameters={"rope_type": "default", "rope_theta": 7.0}).rope == Rope(7.0)


def test_plain_and_linear_frequencies():
    plain, factor = frequencies(Rope(500.0), 8)
    by_hand = [500.0 ** (-2 * i / 8) for i in range(4)]
    np.testing.assert_allclose(plain, by_hand, rtol=1e-15)
    assert factor == 1.0
    linear, _ = frequencies(Rope(500.0, "linear", factor=4.0), 8)
    np.testing.assert_allclose(linear, plain / 4, rtol=1e-15)
    dynamic, _ = frequencies(Rope(500.0, "dynamic", factor=4.0), 8)
    np.testing.assert_array_equal(dynamic, plain)


def test_llama3_frequencies():
    """Meta's llama-models, `apply_scaling`, frequency by frequency."""
    scaled, factor = frequencies(Rope(5e5, **LLAMA3), 128)
    plain, _ = frequencies(Rope(5e5), 128)
    expected = []
    for each in plain:
        wavelength = 2 * math.pi / each
        if wavelength < 8192 / 4:
            expected.append(each)
        elif wavelength > 8192 / 1:
            expected.append(each / 8)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * each / 8 + smooth * each)
    np.testing.assert_allclose(scaled, expected, rtol=1e-13)
    assert factor == 1.0
    middle = (scaled != plain) & ~np.isclose(scaled, plain / 8)
    assert (scaled == plain).sum() > 20 and 3 < middle.sum() < 12


def test_yarn_frequencies():
    """Equations 21 to 23 of the paper, and its temperature of the softmax, 0.1 ln s + 1."""
    rope = Rope(1e4, "yarn", factor=16.0, original_max_position_embeddings=2048, truncate=False)
    scaled, factor = frequencies(rope, 128)
    plain, _ = frequencies(Rope(1e4), 128)
    assert factor == pytest.approx(0.1 * math.log(16) + 1)
    turns = 2048 * plain / (2 * math.pi)
    np.testing.assert_allclose(scaled[turns > 32], plain[turns > 32], rtol=1e-12)
    np.testing.assert_allclose(scaled[turns < 1], plain[turns < 1] / 16, rtol=1e-12)
    between = (turns < 32) & (turns > 1)
    assert ((scaled < plain) & (scaled > plain / 16))[between].all() and between.sum() > 20
    # the ramp is linear in the number of the pair
    kept = (scaled - plain / 16) / (plain - plain / 16)
    np.testing.assert_allclose(np.diff(kept[between], n=2), 0, atol=1e-9)
    given = Rope(1e4, "yarn", factor=16.0, original_max_position_embeddings=8, attention_factor=2.0)
    assert frequencies(given, 128)[1] == 2.0


def test_scores_depend_on_distances_only(x64):
    rope, random = Rope(100.0), np.random.default_rng(0)
    query, key = (jnp.asarray(random.normal(size=(1, 1, 1, 8))) for _ in range(2))

    def score(i, j):
        turned = [
            rotate(x, rotation(rope, 8, jnp.array([[at]]), x.dtype))
            for x, at in ((query, i), (key, j))
        ]
        return float((turned[0] * turned[1]).sum())

    np.testing.assert_allclose(score(9, 4), score(105, 100), rtol=1e-12)
    assert not np.isclose(score(9, 4), score(9, 5))
    np.testing.assert_allclose(score(3, 3), (query * key).sum(), rtol=1e-12)


def test_rotation_by_hand():
    x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    turned = rotate(x, rotation(Rope(100.0), 4, jnp.array([[5]]), jnp.float32))[0, 0, 0]
    cos, sin = np.cos([5.0, 0.5]), np.sin([5.0, 0.5])
    by_hand = [
        1 * cos[0] - 3 * sin[0],
        2 * cos[1] - 4 * sin[1],
        3 * cos[0] + 1 * sin[0],
        4 * cos[1] + 2 * sin[1],
    ]
    np.testing.assert_allclose(turned, by_hand, rtol=1e-6)
    narrow = rotate(x.astype(jnp.bfloat16), rotation(Rope(), 4, jnp.array([[5]]), jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16
