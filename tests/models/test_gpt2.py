"""GPT-2's own: its joined projections, positions and dropouts (test_llama.py compares it too)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_fixtures import NAMES, SHAPES
from drawn_model import dropout_keys
from flax import nnx
from make_fixtures.decoders import CASES, random_tensors
from small_decoder import functional, random_decoder, random_ids

import lora_jax as lj
import variants
from lora_jax.models.families import places
from lora_jax.models.families.gpt2 import GPT2, GPT2Config
from lora_jax.partition import path_name

RATES = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def test_parameter_paths_and_shapes():
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(random_decoder("gpt2", n_inner=20)))
    shapes = {path_name(path): leaf.shape for path, leaf in leaves}
    expected = {"embedding/embedding": (23, 16), "position/embedding": (32, 16)}
    linear = {f"attention/{n}": (16, 16) for n in ("query", "key", "value", "output")}
    for name, size in {**linear, "up": (16, 20), "down": (20, 16)}.items():
        expected[f"layers/{name}/kernel"] = (2, *size)
        expected[f"layers/{name}/bias"] = (2, size[1])
    for leaf in ("scale", "bias"):
        expected[f"norm/{leaf}"] = (16,)
        for name in ("attention_norm", "mlp_norm"):
            expected[f"layers/{name}/{leaf}"] = (2, 16)
    assert shapes == expected


def test_what_adds_to_the_residual_starts_smaller():
    changes = {"n_embd": 64, "initializer_range": 0.2, "n_layer": 8}
    config = GPT2Config.from_json({**CASES["gpt2"], **changes})

    @jax.jit
    def start():
        model = GPT2(config, rngs=nnx.Rngs(0))
        layers, position = model.layers, model.position.embedding[...]
        into = (layers.attention.query.kernel[...], layers.up.kernel[...])
        return (layers.attention.output.kernel[...], layers.down.kernel[...]), into, position

    small, large, position = start()
    for kernel in map(np.asarray, small):
        assert abs(kernel.std() - 0.05) < 0.002
    for kernel in map(np.asarray, large):
        assert abs(kernel.std() - 0.2) < 0.008
    assert abs(np.asarray(position).std() - 0.2) < 0.02


def test_the_joined_projection_is_three_thirds():
    seed = NAMES.index("gpt2")
    joined = random_tensors(SHAPES["gpt2"], seed)["transformer.h.1.attn.c_attn.weight"]
    config = GPT2Config.from_json(CASES["gpt2"])
    for i, name in enumerate(("query", "key", "value")):
        place = places(f"layers/attention/{name}/kernel", config)[1]
        assert place.name == "transformer.h.1.attn.c_attn.weight"
        assert place.tensor_shape((16, 16)) == joined.shape == (16, 48)
        np.testing.assert_array_equal(place.cut(joined), joined[:, 16 * i : 16 * (i + 1)])


def test_queries_and_values_alone_can_be_adapted():
    forward, params = lj.from_nnx(random_decoder("gpt2"))
    adapted = lj.adapt(forward, variants.make("lora", rank=4), targets="(query|value)/kernel")
    trainable, _ = jax.eval_shape(adapted.init, jax.random.key(0), params, random_ids())
    # of each of the layers, two matrices of rank 4
    assert sum(x.size for x in jax.tree.leaves(trainable)) == 2 * 2 * 4 * (16 + 16)
    medium = {"n_embd": 1024, "n_layer": 24, "n_head": 16}
    config = GPT2Config.from_json({**CASES["gpt2"], **medium})
    forward, params = lj.from_nnx(nnx.eval_shape(lambda: GPT2(config, rngs=nnx.Rngs(0))))
    adapted = lj.adapt(forward, variants.make("lora", rank=4), targets="(query|value)/kernel")
    made, _ = jax.eval_shape(adapted.init, jax.random.key(0), params, random_ids())
    assert sum(x.size for x in jax.tree.leaves(made)) == 24 * 2 * 4 * (1024 + 1024)


def test_every_dropout_of_every_layer_has_a_key_of_its_own(monkeypatch):
    found = dropout_keys(random_decoder("gpt2"), [random_ids()], monkeypatch)
    assert len(set(found)) == len(found) == 1 + 2 * 3


def test_dropout_is_a_function_of_its_key():
    ids = random_ids()
    params, apply = functional(random_decoder("gpt2", **dict.fromkeys(RATES, 0.0)))
    plain = apply(params, ids)
    np.testing.assert_array_equal(apply(params, ids, rng=jax.random.key(1)), plain)
    params, apply = functional(random_decoder("gpt2", **dict.fromkeys(RATES, 0.5)))
    np.testing.assert_array_equal(apply(params, ids), plain)
    for only in RATES:
        rates = {**dict.fromkeys(RATES, 0.0), only: 0.5}
        params, apply = functional(random_decoder("gpt2", **rates))
        one, same, other = (apply(params, ids, rng=jax.random.key(k)) for k in (1, 1, 2))
        np.testing.assert_array_equal(one, same)
        assert not np.allclose(one, other), only
        assert not np.allclose(one, plain), only


def test_positions_are_told_from_their_numbers():
    params, apply = functional(random_decoder("gpt2"))
    ids = random_ids()
    plain = apply(params, ids)
    counted = jnp.arange(8)[None]
    np.testing.assert_array_equal(apply(params, ids, positions=counted), plain)
    assert not np.allclose(apply(params, ids, positions=counted + 1), plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt_neo"}, "model_type 'gpt_neo' is not supported; supported: gpt2"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ({"scale_attn_weights": False}, "scale_attn_weights False is not supported, only True"),
        ({"add_cross_attention": True}, "add_cross_attention=True is not supported: plain dec"),
        ({"n_head": 3}, "hidden_size 16 is not a multiple of num_attention_heads 3"),
        ({"n_layer": 0}, "n_layer must be an integer >= 1, got 0"),
        ({"resid_pdrop": 1}, r"resid_pdrop must be a number in \[0, 1\), got 1"),
        ({"activation_function": "mish"}, "activation_function 'mish' is not supported"),
        ({"eos_token_id": "end"}, "eos_token_id must be an integer >= 0, got 'end'"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        GPT2Config.from_json({**CASES["gpt2"], **changes})
    assert "\n" not in str(caught.value)


def test_config_defaults_and_round_trip():
    config = GPT2Config.from_json({"model_type": "gpt2", "n_inner": None, "unknown": 1})
    assert (config.n_inner, config.vocab_size, config.max_tokens) == (3072, 50257, 1024)
    assert config == GPT2Config() and hash(config) == hash(GPT2Config())
    for content in (*(CASES[n] for n in ("gpt2", "gpt2_untied")), {"model_type": "gpt2"}):
        config = GPT2Config.from_json(content)
        assert GPT2Config.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="33 tokens; the model takes at most 32"):
        random_decoder("gpt2")(jnp.zeros((1, 33), jnp.int32))


def test_padding_on_the_left_moves_no_position_of_a_branch():
    model = random_decoder("gpt2")
    ids, branches = random_ids(1, 5), jnp.asarray([[0, 0, 1, 1, 2]])
    padded = [jnp.pad(each, ((0, 0), (3, 0))) for each in (ids, branches, jnp.ones_like(ids))]
    alone = model.hidden(ids, branches=branches)
    beside = model.hidden(padded[0], padded[2], branches=padded[1])
    np.testing.assert_allclose(beside[:, 3:], alone, rtol=1e-4, atol=1e-5)
