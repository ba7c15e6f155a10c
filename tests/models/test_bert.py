"""The encoder against torch's (fixtures written by make_fixtures/bert.py), and its own promises."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_model import (
    assert_slopes,
    assert_starts,
    drawn,
    dropout_keys,
    encode_and_run,
    functional,
    run,
)
from flax import nnx
from make_fixtures.bert import CASES, FIXTURES, random_inputs, random_tensors, save_checkpoint

from lora_jax.models import families
from lora_jax.models.families.bert import BertClassifier, BertConfig, dropout
from lora_jax.models.parts.modules import masked_mean
from lora_jax.models.published.load import load_classifier
from lora_jax.models.published.location import locate
from lora_jax.partition import path_name

SHAPES = json.loads((FIXTURES / "bert_shapes.json").read_text())
NAMES = list(CASES)
RATES = dict.fromkeys(
    ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"), 0.0
)


@pytest.fixture(scope="module")
def truth():
    return np.load(FIXTURES / "bert_random.npz")


def load(name, tmp_path, pool="cls", param_dtype=jnp.float32, **options):
    config, num_labels = CASES[name]
    tensors = random_tensors(SHAPES[name], NAMES.index(name))
    folder = save_checkpoint(tmp_path / name, config, tensors)
    options |= {"param_dtype": param_dtype, "num_labels": num_labels, "pool": pool}
    return load_classifier(folder, key=jax.random.key(0), **options).model


def inputs(name, **sizes):
    return tuple(map(jnp.asarray, random_inputs(CASES[name][0], NAMES.index(name), **sizes)))


def random_model(name="bert", pool="cls", num_labels=2, seed=0, options=None, **changes):
    config, options = families.read({**CASES[name][0], **changes}), options or {}
    model = families.family_of(config).model
    build = functools.partial(model, config, num_labels, pool, **options)
    return drawn(lambda: build(rngs=nnx.Rngs(0)), seed)


def test_equals_torch_in_float32(tmp_path, truth):
    name = "roberta"
    model, (ids, mask, types) = load(name, tmp_path), inputs(name)
    hidden, logits = encode_and_run(model, ids, mask, types)
    assert hidden.dtype == logits.dtype == np.float32
    np.testing.assert_allclose(hidden, truth[f"{name}/hidden"], atol=1e-5)
    np.testing.assert_allclose(logits, truth[f"{name}/logits"], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_equals_torch_in_float64(name, tmp_path, truth, x64):
    model, (ids, mask, types) = load(name, tmp_path, param_dtype=jnp.float64), inputs(name)
    hidden, logits = encode_and_run(model, ids, mask, types)
    assert logits.dtype == jnp.float64
    # torch's gelu_fast has its constant to ten digits only
    atol = 1e-8 if CASES[name][0].get("hidden_act") == "gelu_fast" else 1e-12
    np.testing.assert_allclose(hidden, truth[f"{name}/hidden"], atol=atol)
    np.testing.assert_allclose(logits, truth[f"{name}/logits"], atol=atol)


def test_mean_pooling_is_the_mean_of_torchs_hidden_states(tmp_path, truth):
    name = "bert"
    model, (ids, mask, types) = load(name, tmp_path, pool="mean"), inputs(name)
    hidden, kernel = truth[f"{name}/hidden"], np.asarray(model.classifier.kernel)
    pooled = np.stack([h[m == 1].mean(0) for h, m in zip(hidden, np.asarray(mask), strict=True)])
    np.testing.assert_allclose(run(model, ids, mask, types), pooled @ kernel, atol=1e-5)


def test_a_mean_of_bfloat16_states_is_in_float32():
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(1, 1, (3, 300, 2)), jnp.bfloat16)
    mask = random.random((3, 300)) < np.array([[0.5], [0.9], [0.0]])
    found = masked_mean(x, jnp.asarray(mask, jnp.int32))
    exact = [np.asarray(row, np.float64)[kept] for row, kept in zip(x, mask, strict=True)]
    expected = [row.mean(0) if len(row) else np.zeros(2) for row in exact]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_minilm_equals_torch_on_real_sentences():
    try:
        folder = locate("minilm")
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    truth = np.load(FIXTURES / "bert_minilm.npz")
    options = {"num_labels": 2, "pool": "mean", "key": jax.random.key(0)}
    model = load_classifier(folder, **options).model
    hidden, _ = encode_and_run(model, jnp.asarray(truth["ids"]), jnp.asarray(truth["mask"]))
    assert hidden.dtype == np.float32
    rows = truth["mask"] == 1  # off by up to 3e-5 on padding, which nothing reads
    np.testing.assert_allclose(hidden[rows], truth["hidden"][rows], atol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_parameter_paths_and_shapes(pool):
    params = nnx.state(random_model("bert", pool, num_labels=3))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = {path_name(path): leaf.shape for path, leaf in leaves}
    linear = {f"layers/attention/{n}": (16, 16) for n in ("query", "key", "value", "output")}
    linear |= {"layers/up": (16, 32), "layers/down": (32, 16), "classifier": (16, 3)}
    linear |= {"pooler": (16, 16)} if pool == "cls" else {}
    tables = {"word": 50, "position": 24, "token_type": 2}
    expected = {f"embeddings/{name}/embedding": (rows, 16) for name, rows in tables.items()}
    for name, (width, out) in linear.items():
        stacked = (2,) if name.startswith("layers/") else ()
        expected |= {f"{name}/kernel": (*stacked, width, out), f"{name}/bias": (*stacked, out)}
    for name in ("embeddings/norm", "layers/attention/norm", "layers/norm"):
        stacked = (2,) if name.startswith("layers/") else ()
        expected |= {f"{name}/scale": (*stacked, 16), f"{name}/bias": (*stacked, 16)}
    assert shapes == expected


def test_a_new_model_has_the_initial_deviation_and_layers_that_differ():
    config = BertConfig.from_json({**CASES["bert"][0], "initializer_range": 0.3})
    assert_starts(lambda: BertClassifier(config, 20, rngs=nnx.Rngs(0)), 0.3)


def test_the_program_does_not_grow_with_the_layers():
    def equations(layers):
        params, apply = functional(random_model(num_hidden_layers=layers))
        return str(jax.make_jaxpr(apply)(params, *inputs("bert"))).count(" = ")

    assert equations(2) == equations(7)


@pytest.mark.parametrize(("name", "pool"), [("bert", "mean"), ("roberta", "cls")])
def test_padding_changes_no_logit(name, pool):
    params, apply = functional(random_model(name, pool))
    ids, mask, types = inputs(name)
    right = ((0, 0), (0, 6))
    padded = [np.pad(x, right) for x in (ids, mask, types)]
    expected = apply(params, ids, mask, types)
    np.testing.assert_allclose(apply(params, *padded), expected, atol=1e-6)
    other_words = np.where(np.asarray(mask) == 0, 3, ids)
    # a left-padded row has its first "token" masked: nothing of it reaches a mean
    rows = slice(None) if pool == "mean" else np.asarray(mask)[:, 0] == 1
    changed = apply(params, other_words, mask, types)
    np.testing.assert_allclose(np.asarray(changed)[rows], np.asarray(expected)[rows], atol=1e-6)


def test_masks_of_any_kind_and_absent_types():
    params, apply = functional(random_model())
    ids, mask, types = inputs("bert")
    expected = apply(params, ids, mask, np.zeros_like(types))
    for other in (mask.astype(bool), mask.astype(jnp.float32), mask * 5):
        np.testing.assert_array_equal(apply(params, ids, other), expected)
    assert not np.allclose(apply(params, ids, mask, np.ones_like(types)), expected)
    params, apply = functional(random_model("roberta"))  # it has one type, which is none
    ids, mask, types = inputs("roberta")
    without = apply(params, ids, mask)
    np.testing.assert_array_equal(apply(params, ids, mask, np.ones_like(types)), without)


def test_gradients_equal_finite_differences_and_remat_changes_nothing(x64):
    """Those of rows that are wholly padding are finite, and the other rows' logits as they were."""
    (ids, mask, types), values = inputs("roberta", batch=2, tokens=4), []
    rates = RATES | {"attention_probs_dropout_prob": 0.1}
    for remat in (False, True):
        options = {"remat": remat, "param_dtype": jnp.float64}
        params, apply = functional(random_model("roberta", "mean", options=options, **rates))

        def loss(params, mask, apply=apply):
            logits = apply(params, ids, mask, types, rng=jax.random.key(3))
            return jnp.square(logits).sum(), logits

        traced = jax.jit(jax.value_and_grad(loss, has_aux=True)).trace(params, mask)
        assert ("remat" in str(traced.jaxpr)) == remat
        compiled = traced.lower().compile()
        values.append(compiled(params, mask))
    for plain, recomputed in zip(*map(jax.tree.leaves, values), strict=True):
        np.testing.assert_allclose(plain, recomputed, rtol=1e-12, atol=1e-12)

    def value_and_grad(params):
        (value, _), gradient = compiled(params, mask)
        return value, gradient

    assert_slopes(value_and_grad, params)
    padded = compiled(params, np.array(mask) * np.array([[0], [1]], mask.dtype))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(padded))
    np.testing.assert_allclose(padded[0][1][1], values[0][0][1][1], atol=1e-12)
    jax.eval_shape(lambda params: jax.jvp(lambda p: loss(p, mask), (params,), (params,)), params)


def test_vmap_over_models():
    (first, apply), (second, _) = (functional(random_model(seed=seed)) for seed in (0, 1))
    both = jax.tree.map(lambda *leaves: np.stack(leaves), first, second)
    args = inputs("bert")
    together = jax.jit(jax.vmap(apply, in_axes=(0, None, None, None)))(both, *args)
    np.testing.assert_allclose(together[0], apply(first, *args), atol=1e-5)
    np.testing.assert_allclose(together[1], apply(second, *args), atol=1e-5)


def test_bfloat16_computation():
    exact, half = (random_model(options=each) for each in ({}, {"dtype": jnp.bfloat16}))
    args = inputs("bert")
    assert {x.dtype for x in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    params, apply = functional(exact)
    hidden, half_logits = encode_and_run(half, *args)
    assert hidden.dtype == jnp.bfloat16
    expected = np.asarray(apply(params, *args))
    all_half = jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16), params)
    for logits, most in ((half_logits, 0.03), (apply(all_half, *args), 0.05)):
        assert logits.dtype == jnp.float32
        assert 0 < np.abs(logits - expected).max() < most


@pytest.mark.parametrize("width", [500, 501])
def test_dropout_zeroes_a_share_and_keeps_the_mean(width):
    x = np.full((400, width), 3.0, np.float32)
    y = np.asarray(jax.jit(lambda x: dropout(x, 0.25, jax.random.key(0)))(x))
    share = float((y == 0).mean())
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / x.size) ** 0.5
    pairs = (y[:, 0:500:2] == 0) & (y[:, 1:500:2] == 0)  # of one random word
    assert abs(pairs.mean() - 0.25**2) < 5 * (0.25**2 * (1 - 0.25**2) / pairs.size) ** 0.5
    np.testing.assert_allclose(y[y != 0], 4.0, rtol=1e-6)
    assert dropout(x, 0.25, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


def test_dropout_is_a_function_of_its_key():
    (params, apply), args = functional(random_model()), inputs("bert")
    plain = apply(params, *args)
    np.testing.assert_array_equal(plain, apply(params, *args))
    one, same, other = (apply(params, *args, rng=jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


@pytest.mark.parametrize(
    ("name", "only"),
    [
        *(("bert", rate) for rate in (None, "hidden_dropout_prob", "attention_probs_dropout_prob")),
        ("roberta", "classifier_dropout"),  # of "bert", below
    ],
)
def test_every_rate_of_dropout_acts(name, only):
    rates = RATES | ({} if only is None else {only: 0.5})
    args = inputs(name)
    plain = run(random_model(name), *args)
    found = run(random_model(name, **rates), *args, rng=jax.random.key(1))
    assert np.array_equal(found, plain) if only is None else not np.allclose(found, plain)


def test_every_dropout_of_every_layer_has_a_key_of_its_own(monkeypatch):
    found = dropout_keys(random_model(), inputs("bert"), monkeypatch)
    assert len(set(found)) == len(found) == 2 + 2 * 3


def test_classifier_dropout_keeps_the_expected_logits():
    model, args = random_model(**(RATES | {"classifier_dropout": 0.5})), inputs("bert")
    keys = jax.random.split(jax.random.key(0), 2000)
    draws = np.asarray(jax.jit(jax.vmap(lambda key: model(*args, rng=key)))(keys))
    error = draws.std(0) / len(keys) ** 0.5
    assert np.all(np.abs(draws.mean(0) - run(random_model(), *args)) < 5 * error)


def test_wrong_calls_are_named():
    model, (ids, mask, _) = random_model("roberta"), inputs("roberta")
    with pytest.raises(ValueError, match=r"\(4, 9\) and \(4, 8\)"):
        model(ids, mask[:, 1:])
    with pytest.raises(ValueError, match="23 tokens; the model takes at most 22"):
        model(jnp.ones((1, 23), jnp.int32), jnp.ones((1, 23), jnp.int32))
    longest = np.full((1, 22), 5, np.int32)
    assert np.isfinite(run(model, longest, np.ones_like(longest))).all()
    with pytest.raises(ValueError, match="pool must be one of cls, mean, got 'max'"):
        random_model(pool="max")
    with pytest.raises(ValueError, match="num_labels must be at least 1, got 0"):
        random_model(num_labels=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "gpt2"},
            "model_type 'gpt2' is not supported; nearest: .*: bert, deberta",
        ),
        ({"model_type": None}, "model_type None is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"add_cross_attention": True}, "add_cross_attention=True"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"hidden_act": "mish"}, "hidden_act 'mish' is not supported; supported: gelu, "),
        ({"num_attention_heads": 5}, "hidden_size 16 is not a multiple of num_attention_heads 5"),
        ({"hidden_size": "16"}, "hidden_size must be an integer >= 1, got '16'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be an integer >= 1, got 0"),
        ({"vocab_size": True}, "vocab_size must be an integer >= 1, got True"),
        (
            {"hidden_dropout_prob": 1.0},
            r"hidden_dropout_prob must be a number in \[0, 1\), got 1.0",
        ),
        ({"layer_norm_eps": 0}, "layer_norm_eps must be a positive number, got 0"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        families.read({**CASES["bert"][0], **changes}, "encoder")
    assert "\n" not in str(caught.value)


def test_config_defaults_and_round_trip():
    roberta = families.read({"model_type": "roberta", "classifier_dropout": None})
    assert (roberta.vocab_size, roberta.pad_token_id, roberta.max_tokens) == (50265, 1, 510)
    assert roberta.head_dropout == roberta.hidden_dropout_prob == 0.1
    assert dataclasses.replace(roberta, classifier_dropout=0.0).head_dropout == 0.0
    assert families.read(roberta.to_json()) == roberta
    assert hash(BertConfig()) == hash(BertConfig.from_json({"model_type": "bert", "unknown": 1}))
