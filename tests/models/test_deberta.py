"""DeBERTa against torch's (fixtures written by make_fixtures/deberta.py), and its own promises."""

import functools
import json

import chex
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
from make_fixtures.bert import random_tensors, save_checkpoint
from make_fixtures.deberta import CASES, FIXTURES, deberta_inputs, inputs_of
from published_names import to_torch_names
from zoo.check import random_like

import lora_jax as lj
import variants
from lora_jax.models.families.deberta_v2 import DebertaClassifier, DebertaConfig
from lora_jax.models.published.export import export_model
from lora_jax.models.published.load import load_classifier
from lora_jax.partition import path_name

SHAPES = json.loads((FIXTURES / "deberta_shapes.json").read_text())
NAMES = list(CASES)
SIX = [
    *(f"layers/attention/{name}/kernel" for name in ("query", "key", "value", "output")),
    "layers/up/kernel",
    "layers/down/kernel",
]


@pytest.fixture(scope="module")
def truth():
    return np.load(FIXTURES / "deberta_random.npz")


def load(name, tmp_path, pool="cls", param_dtype=jnp.float32, **options):
    config, num_labels, _ = CASES[name]
    tensors = random_tensors(SHAPES[name], NAMES.index(name))
    folder = save_checkpoint(tmp_path / name, config, tensors)
    options |= {"param_dtype": param_dtype, "num_labels": num_labels, "pool": pool}
    return load_classifier(folder, key=jax.random.key(0), **options)


def inputs(name):
    return tuple(map(jnp.asarray, inputs_of(name)))


def random_model(name="v3", pool="cls", seed=0, options=None, **changes):
    config, options = DebertaConfig.from_json({**CASES[name][0], **changes}), options or {}
    build = functools.partial(DebertaClassifier, config, CASES[name][1], pool, **options)
    return drawn(lambda: build(rngs=nnx.Rngs(0)), seed)


def test_a_new_model_has_the_initial_deviation_and_layers_that_differ():
    config = DebertaConfig.from_json({**CASES["v2"][0], "initializer_range": 0.3})
    assert_starts(lambda: DebertaClassifier(config, 20, rngs=nnx.Rngs(0)), 0.3)


def assert_equal(name, model, truth, atol):
    """But on padding, which nothing reads, and for rows without a first token."""
    mask = inputs_of(name)[1]
    hidden, logits = encode_and_run(model, *inputs(name))
    assert hidden.dtype == logits.dtype == model.embeddings.word.embedding.dtype
    expected = truth[f"{name}/hidden"][mask == 1]
    np.testing.assert_allclose(hidden[mask == 1], expected, atol=atol)
    rows = mask[:, 0] == 1
    np.testing.assert_allclose(logits[rows], truth[f"{name}/logits"][rows], atol=atol)


def test_equals_torch_in_float32(tmp_path, truth):
    model, fresh = load("everything", tmp_path)
    assert fresh == ()
    assert_equal("everything", model, truth, 1e-5)


@pytest.mark.parametrize("name", NAMES[1:])  # the first is the second in short
def test_equals_torch_in_float64(name, tmp_path, truth, x64):
    assert_equal(name, load(name, tmp_path, param_dtype=jnp.float64).model, truth, 1e-11)


def test_mean_pooling_is_the_mean_of_torchs_hidden_states(tmp_path, truth):
    (model, fresh), (ids, mask, types) = load("v2", tmp_path, pool="mean"), inputs("v2")
    assert fresh == ("classifier/kernel", "classifier/bias")  # those there are for the first token
    hidden, kernel = truth["v2/hidden"], np.asarray(model.classifier.kernel)
    pooled = np.stack([h[m == 1].mean(0) for h, m in zip(hidden, np.asarray(mask), strict=True)])
    logits = run(model, ids, mask, types)
    np.testing.assert_allclose(logits, pooled @ kernel, atol=1e-5)


@pytest.mark.parametrize("name", ["v3", "own_projections", "everything"])
def test_parameters_are_transformers_tensors(tmp_path, name):
    model = load(name, tmp_path).model
    tensors = to_torch_names(nnx.to_pure_dict(nnx.state(model)), model.config)
    assert {k: list(v.shape) for k, v in tensors.items()} == SHAPES[name]
    for key, tensor in random_tensors(SHAPES[name], NAMES.index(name)).items():
        np.testing.assert_array_equal(tensors[key], tensor.astype(np.float32))
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(model))
    shapes = {path_name(path): leaf.shape for path, leaf in leaves}
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    kernels = [path for path in shapes if path.startswith("layers/") and path.endswith("/kernel")]
    extra = ["position_key", "position_query"] if name == "own_projections" else []
    extra = [f"layers/attention/{each}/kernel" for each in extra]
    assert sorted(kernels) == sorted([*SIX, *extra])
    assert shapes["layers/attention/query/kernel"] == (layers, width, width)
    assert shapes["layers/up/kernel"] == (layers, width, 32)
    assert shapes["layers/down/kernel"] == (layers, 32, width)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_export_and_load_are_inverse(tmp_path, pool):
    first = load("everything", tmp_path, pool).model
    export_model(nnx.state(first), first.config, tmp_path / "out")
    options = {"num_labels": 3, "pool": pool, "key": jax.random.key(1)}
    second, fresh = load_classifier(tmp_path / "out", **options)
    assert (fresh, second.config) == ((), first.config)
    chex.assert_trees_all_equal(nnx.state(second), nnx.state(first))
    config = json.loads((tmp_path / "out/config.json").read_text())
    kind = {"cls": "DebertaV2ForSequenceClassification", "mean": "DebertaV2Model"}[pool]
    assert (config["architectures"], config["pos_att_type"]) == ([kind], ["p2c", "c2p"])


def test_an_encoder_without_its_head_gets_a_fresh_one(tmp_path):
    """As microsoft/deberta-v3-base is published, with heads of its pretraining beside it."""
    tensors = random_tensors(SHAPES["v3"], NAMES.index("v3"))
    kept = {name: t for name, t in tensors.items() if name.startswith("deberta.")}
    kept["mask_predictions.classifier.bias"] = np.zeros(1)
    folder = save_checkpoint(tmp_path, CASES["v3"][0], kept)
    model, fresh = load_classifier(folder, num_labels=2, pool="cls", key=jax.random.key(0))
    assert set(fresh) == {
        f"{m}/{leaf}" for m in ("pooler", "classifier") for leaf in ("kernel", "bias")
    }
    name = "deberta.encoder.layer.1.attention.self.query_proj.weight"
    query = model.layers.attention.query.kernel[1]
    np.testing.assert_array_equal(query, tensors[name].T.astype(np.float32))


def test_the_program_gathers_no_element_and_does_not_grow_with_the_layers():
    def program(layers):
        params, apply = functional(random_model("v2", num_hidden_layers=layers))
        gradient = jax.grad(lambda p, *args: apply(p, *args).sum())
        return str(jax.make_jaxpr(gradient)(params, *inputs("v2")))

    two, five = program(2), program(5)
    assert two.count(" = ") == five.count(" = ")
    assert "f32[4,2,9,9] = gather" not in two and two.count(" gather[") <= 6


# ---- the classifier's promises ------------------------------------------------------------------


def test_padding_changes_no_logit():
    params, apply = functional(random_model("everything", "mean"))
    ids, mask, types = inputs("everything")
    expected = apply(params, ids, mask, types)
    padded = [np.pad(x, ((0, 0), (0, 6))) for x in (ids, mask, types)]
    np.testing.assert_allclose(apply(params, *padded), expected, atol=1e-5)
    other_words = np.where(np.asarray(mask) == 0, 3, ids)
    np.testing.assert_allclose(apply(params, other_words, mask, types), expected, atol=1e-5)
    np.testing.assert_array_equal(apply(params, ids, mask * 5, types), expected)


@pytest.mark.slow
def test_padding_is_no_input_of_a_weight_that_also_projects_distances():
    """Longer rows have no further distances here, so that what is seen is the same."""
    params, apply = functional(random_model("everything", "mean"))
    eva = lj.adapt(apply, variants.make("eva", rank=2))
    given = inputs("everything")
    padded = [jnp.pad(x, ((0, 1), (0, 6))) for x in given]  # a row of padding too
    found, wanted = (
        eva.gather(jax.random.key(0), params, *batch, batches=[batch], counts=lambda each: each[1])
        for batch in (padded, given)
    )
    for path, each in wanted.items():
        for name in ("variances", "mean", "magnitude"):
            a, b = (np.asarray(getattr(one, name)) for one in (found[path], each))
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_token_types_are_optional_and_not_looked_at_without_a_table():
    for name, same in (("v3", True), ("absolute", False)):
        params, apply = functional(random_model(name))
        ids, mask, _ = inputs(name)
        plain = apply(params, ids, mask)
        np.testing.assert_array_equal(apply(params, ids, mask, np.zeros_like(ids)), plain)
        assert np.array_equal(apply(params, ids, mask, np.ones_like(ids)), plain) == same


def test_gradients_equal_finite_differences_and_remat_changes_nothing(x64):
    """Those of rows that are wholly padding are finite."""
    (ids, mask, types), values = [x[:2, :4] for x in inputs_of("v2")], []
    for remat in (False, True):
        options = {"remat": remat, "param_dtype": jnp.float64}
        params, apply = functional(random_model("v2", options=options))

        def loss(params, mask, apply=apply):
            return jnp.square(apply(params, ids, mask, types)).sum()

        traced = jax.jit(jax.value_and_grad(loss)).trace(params, mask)
        assert ("remat" in str(traced.jaxpr)) == remat
        value_and_grad = traced.lower().compile()
        values.append(value_and_grad(params, mask))
    for plain, recomputed in zip(*map(jax.tree.leaves, values), strict=True):
        np.testing.assert_allclose(plain, recomputed, rtol=1e-12, atol=1e-12)
    assert_slopes(lambda params: value_and_grad(params, mask), params)
    padded = value_and_grad(params, mask * np.array([[0], [1]], mask.dtype))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(padded))
    jax.eval_shape(lambda params: jax.jvp(lambda p: loss(p, mask), (params,), (params,)), params)


def test_vmap_over_models():
    (first, apply), (second, _) = (functional(random_model("v2", seed=seed)) for seed in (0, 1))
    both = jax.tree.map(lambda *leaves: np.stack(leaves), first, second)
    args = inputs("v2")
    together = jax.jit(jax.vmap(apply, in_axes=(0, None, None, None)))(both, *args)
    for i, params in enumerate((first, second)):
        np.testing.assert_allclose(together[i], apply(params, *args), atol=1e-5)


def test_bfloat16_computation():
    args = inputs("v2")
    half = random_model("v2", options={"dtype": jnp.bfloat16})
    assert {x.dtype for x in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    hidden, logits = encode_and_run(half, *args)
    assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    expected = run(random_model("v2"), *args)
    assert 0 < np.abs(logits - expected).max() < 0.05


@pytest.mark.parametrize(("name", "outside"), [("v3", 3), ("v2", 4)])
def test_every_dropout_of_every_layer_has_a_key_of_its_own(name, outside, monkeypatch):
    """Outside of the layers are the embeddings, the head's two, and v2's convolution."""
    found = dropout_keys(random_model(name), inputs(name), monkeypatch)
    assert len(set(found)) == len(found) == outside + 2 * 4


def test_every_rate_of_dropout_acts_and_is_a_function_of_its_key():
    args = inputs("v2")
    off = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    off |= {"pooler_dropout": 0.0, "cls_dropout": 0.0}
    params, apply = functional(random_model("v2", **off))
    plain = apply(params, *args)
    np.testing.assert_array_equal(apply(params, *args, rng=jax.random.key(1)), plain)
    for only in off:
        params, apply = functional(random_model("v2", **{**off, only: 0.5}))
        one, again, other = (apply(params, *args, rng=jax.random.key(seed)) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, again)
        assert not np.allclose(one, other) and not np.allclose(one, plain), only


def test_only_absolute_positions_end():
    model = random_model("absolute")
    long = jnp.ones((1, 25), jnp.int32)
    with pytest.raises(ValueError, match="25 tokens; the model takes at most 24"):
        model(long, long)
    ids, mask, _ = map(jnp.asarray, deberta_inputs(CASES["v3"][0], 0, 60))
    assert np.isfinite(run(random_model("v3"), ids, mask)).all()


# ---- adapted ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v2", "own_projections"])
def test_all_linear_finds_the_linears(name):
    model, args = random_model(name, "mean"), inputs(name)
    forward, params = lj.from_nnx(model)
    adapted = lj.adapt(forward, variants.make("lora", rank=2), "all-linear")
    trainable, _ = jax.eval_shape(adapted.init, jax.random.key(0), params, *args)
    extra = ["position_key", "position_query"] if name == "own_projections" else []
    expected = {*SIX, *(f"layers/attention/{each}/kernel" for each in extra)}
    # and the head's, as in every classifier: neither the convolution nor an embedding
    assert set(trainable["adapters"]) == {*expected, "classifier/kernel"}


def test_the_adapted_model_is_the_model_of_merged_weights(x64):
    """Of the shared projections too, which multiply hidden states and relative embeddings."""
    model = random_model("v2", options={"param_dtype": jnp.float64})
    args = inputs("v2")
    model_forward, params = lj.from_nnx(model)
    adapted = lj.adapt(model_forward, variants.make("dora", rank=2), "all-linear")

    @jax.jit
    def outputs(params):
        trainable, frozen = adapted.init(jax.random.key(0), params, *args)
        moved = jax.tree.map(jnp.add, trainable, random_like(trainable, 0))
        merged = adapted.merge(moved, frozen)
        stacked = jax.tree.map(lambda *both: jnp.stack(both), merged, params)
        both = jax.vmap(lambda params: model_forward(params, *args))(stacked)
        return adapted.apply(moved, frozen, *args), both

    found, (merged, plain) = outputs(params)
    np.testing.assert_allclose(found, merged, atol=1e-10)
    assert not np.allclose(found, plain, atol=1e-2)
    uses = {str(use) for use in lj.discover(model_forward, params, *args)[SIX[0]].uses}
    assert uses == {"product"}
