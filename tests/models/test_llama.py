"""The decoders against torch's (fixtures written by make_fixtures/decoders.py), and Llama's own."""

import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_fixtures import NAMES, SHAPES
from drawn_model import assert_starts
from flax import nnx
from make_fixtures.bert import save_checkpoint
from make_fixtures.decoders import CASES, FIXTURES, random_inputs, random_tensors
from small_decoder import functional, random_decoder, random_ids
from zoo.check import random_like

from lora_jax.models.families.llama import Llama, LlamaConfig
from lora_jax.models.parts.causal_attention import (
    Sight,
    _attend,
    attend,
    reach,
    restarting,
    visible,
)
from lora_jax.models.parts.decoder import POLICIES
from lora_jax.models.parts.rope import Rotation
from lora_jax.models.published.load import load_decoder
from lora_jax.partition import path_name

WINDOW = CASES["mistral"]["sliding_window"]


@pytest.fixture(scope="module")
def truth():
    return np.load(FIXTURES / "decoders.npz")


def outputs(name, folder, dtype):
    """What our decoder makes of the fixture's weights and inputs, at the tokens it holds."""
    seed = NAMES.index(name)
    save_checkpoint(folder, CASES[name], random_tensors(SHAPES[name], seed))
    params, apply = functional(load_decoder(folder, param_dtype=dtype))
    ids, mask, positions = random_inputs(CASES[name], seed)
    logits = apply(params, ids, mask, positions=positions)
    assert logits.dtype == dtype
    return np.asarray(logits)[mask == 1][::2]


@pytest.mark.parametrize("name", NAMES)
def test_equals_torch_in_float64(name, tmp_path, truth, x64):
    np.testing.assert_allclose(outputs(name, tmp_path, jnp.float64), truth[name], atol=1e-10)


@pytest.mark.parametrize("name", ["llama3", "gpt2"])
def test_equals_torch_in_float32(name, tmp_path, truth):
    """To 1e-5 of the largest logit."""
    atol = 1e-5 * np.abs(truth[name]).max()
    np.testing.assert_allclose(outputs(name, tmp_path, jnp.float32), truth[name], atol=atol)


def test_parameter_paths_and_shapes():
    def shapes(name, **changes):
        leaves = jax.tree_util.tree_leaves_with_path(nnx.state(random_decoder(name, **changes)))
        return {path_name(path): leaf.shape for path, leaf in leaves}

    expected = {
        "embedding/embedding": (23, 16),
        "layers/attention_norm/scale": (2, 16),
        "layers/attention/query/kernel": (2, 16, 16),
        "layers/attention/key/kernel": (2, 16, 8),
        "layers/attention/value/kernel": (2, 16, 8),
        "layers/attention/output/kernel": (2, 16, 16),
        "layers/mlp_norm/scale": (2, 16),
        "layers/gate/kernel": (2, 16, 20),
        "layers/up/kernel": (2, 16, 20),
        "layers/down/kernel": (2, 20, 16),
        "norm/scale": (16,),
        "head/kernel": (16, 23),
    }
    assert shapes("llama") == expected
    del expected["head/kernel"]
    qwen = {f"layers/attention/{n}/bias": (2, 8 * (1 + (n == "query"))) for n in ("query", "key")}
    qwen["layers/attention/value/bias"] = (2, 8)
    kinds = {"model_type": "qwen2", "tie_word_embeddings": True}
    assert shapes("llama", **kinds) == expected | qwen
    kinds = {"model_type": "qwen3", "tie_word_embeddings": True, "head_dim": 4}
    norms = {f"layers/attention/{n}_norm/scale": (2, 4) for n in ("query", "key")}
    assert shapes("llama", **kinds) == expected | norms


def test_a_new_model_has_the_initial_deviation_and_layers_that_differ():
    config = LlamaConfig.from_json({**CASES["llama"], "initializer_range": 0.3})
    assert_starts(lambda: Llama(config, rngs=nnx.Rngs(0)), 0.3)


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_the_program_does_not_grow_with_the_layers(name):
    size = "n_layer" if name == "gpt2" else "num_hidden_layers"

    def text(layers):
        params, apply = functional(random_decoder(name, options={"unroll": 1}, **{size: layers}))
        return jax.jit(apply).lower(params, random_ids()).as_text()

    lines = [text(layers).count("\n") for layers in (3, 7)]
    assert lines[0] == lines[1]


# ---- what a token sees ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama3", "qwen2", "gpt2"])
def test_no_token_sees_a_later_one(name):
    params, apply = functional(random_decoder(name))
    ids = np.asarray(random_ids())
    other = ids.copy()
    other[:, 5] = (ids[:, 5] + 1) % 23
    before, after = (np.asarray(apply(params, each)) for each in (ids, other))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert not np.allclose(before[:, 5:], after[:, 5:])


def changed_by_the_first(model, tokens):
    """How much the logits of each token change with the first one."""
    params, apply = functional(model)
    ids = np.asarray(random_ids(tokens=tokens))
    other = ids.copy()
    other[:, 0] = (ids[:, 0] + 1) % 23
    return np.abs(np.asarray(apply(params, ids)) - np.asarray(apply(params, other))).max((0, 2))


def test_a_window_hides_what_is_farther_back():
    changed = changed_by_the_first(random_decoder("mistral", num_hidden_layers=1), 12)
    assert (changed[WINDOW:] == 0).all() and (changed[:WINDOW] > 1e-4).all()
    # two layers reach twice as far, but for the token that both share
    changed = changed_by_the_first(random_decoder("mistral"), 12) > 0
    np.testing.assert_array_equal(changed, np.arange(12) < 2 * WINDOW - 1)


def test_full_layers_among_sliding_ones_see_everything():
    assert (changed_by_the_first(random_decoder("qwen2"), 12) > 1e-5).all()
    none = random_decoder("qwen2", layer_types=["sliding_attention"] * 3)
    changed = changed_by_the_first(none, 12) > 0
    np.testing.assert_array_equal(changed, np.arange(12) < 3 * (WINDOW - 1) + 1)


@pytest.mark.parametrize("name", ["llama3", "qwen2", "gpt2"])
def test_padding_changes_no_token(name):
    params, apply = functional(random_decoder(name))
    ids = random_ids()
    alone = apply(params, ids)
    for left, right in ((3, 0), (0, 3), (2, 1)):
        padding = ((0, 0), (left, right))
        padded = np.pad(ids, padding, constant_values=7)
        logits = np.asarray(apply(params, padded, np.pad(np.ones_like(ids), padding)))
        assert np.isfinite(logits).all()
        np.testing.assert_allclose(logits[:, left : left + 8], alone, atol=2e-5)
    one = apply(params, padded, np.pad(np.ones_like(ids), padding), segments=np.ones_like(padded))
    np.testing.assert_allclose(one[:, left : left + 8], alone, atol=2e-5)


def test_masks_by_hand():
    @jax.jit
    def ours():
        index, runs = jnp.arange(4), jnp.array([[5, 5, 5, 2, 2, 9], [1, 2, 2, 2, 0, 0]])
        seen = reach(index, index, window=2)
        mask = visible(4, jnp.array([[1, 1, 1, 0]]), jnp.array([[1, 1, 2, 2]]))
        padded = jnp.array([[0, 1, 1, 1, 0, 1], [0, 0, 1, 1, 0, 1]])
        return seen, mask, restarting(runs), restarting(runs, padded)

    seen, mask, positions, without_padding = map(np.asarray, ours())
    by_hand = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    np.testing.assert_array_equal(seen[0, 0], np.array(by_hand, bool))
    by_hand = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]
    np.testing.assert_array_equal(mask[0, 0], np.array(by_hand, bool))
    np.testing.assert_array_equal(positions, [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 0, 1]])
    np.testing.assert_array_equal(without_padding, [[0, 0, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]])


@pytest.mark.parametrize(("tokens", "window"), [(7, None), (7, 3), (205, None)])
def test_written_out_attention_is_that_of_jax(tokens, window):
    """205 tokens are three blocks, of which the last is shorter."""
    shapes = ((2, tokens, 4, 6), (2, tokens, 2, 6), (2, tokens, 2, 6))
    given = random_like([np.zeros(shape, np.float32) for shape in shapes], 0)
    segments = np.sort(np.random.default_rng(0).integers(1, 4, (2, tokens)), axis=1)
    masked = Sight(visible(tokens, segments=segments, window=window))

    def with_gradients(attention, sight):
        def objective(*given):
            y = attention(*given, sight)
            return jnp.sum(jnp.sin(y)), y

        return jax.value_and_grad(objective, (0, 1, 2), has_aux=True)

    @jax.jit
    def both(*given):
        def written_out(query, key, value, sight):
            return _attend(query, key, value, sight, 0.0, None)

        def of_jax(query, key, value, sight):
            return attend(query, key, value, sight._replace(implementation="xla"))

        return [
            (with_gradients(written_out, each)(*given), with_gradients(of_jax, each)(*given))
            for each in (Sight(None, window), masked)
        ]

    for ours, expected in both(*given):
        chex.assert_trees_all_close(ours, expected, atol=1e-5)


def test_a_token_attends_to_keys_that_were_kept():
    """What generation will do: one token at a time, with the keys and values of earlier ones."""
    model = random_decoder("llama", num_hidden_layers=1)
    graph, params = nnx.split(model.layers)
    weights = jax.tree.map(lambda leaf: np.asarray(leaf)[0], params)

    @jax.jit
    def both(weights, x):
        layer, turn = nnx.merge(graph, weights), model.rotation(jnp.arange(6)[None], jnp.float32)
        _, keys, values = layer.project(x, turn)
        last = Rotation(turn.cos[:, -1:], turn.sin[:, -1:])
        query, _, _ = layer.project(x[:, -1:], last)
        y = attend(query, keys, values, Sight(reach(jnp.array([5]), jnp.arange(6))))
        return layer.finish(x[:, -1:], y), layer(x, turn, Sight(), None)[:, -1:]

    last, expected = both(weights, random_like(np.zeros((2, 6, 16), np.float32), 3))
    np.testing.assert_allclose(last, expected, atol=1e-5)


# ---- precision and memory ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_bfloat16_computation(name):
    exact = random_decoder(name)
    half = random_decoder(name, options={"dtype": jnp.bfloat16})
    ids = random_ids()
    params, apply = functional(half)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert jax.eval_shape(functional(half, "hidden")[1], params, ids).dtype == jnp.bfloat16
    expected = np.asarray(functional(exact)[1](params, ids))
    narrow = jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16), params)
    for weights in (params, narrow):
        logits = np.asarray(apply(weights, ids))
        assert logits.dtype == np.float32
        off = np.sqrt(np.square(logits - expected).mean() / np.square(expected).mean())
        assert 0 < off < 0.03  # some ten roundings of up to 2^-8 each


def recomputed_parts(jaxpr):
    """The programs in a jaxpr that the backward pass computes again."""
    for eqn in jaxpr.eqns:
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            if eqn.primitive.name in ("checkpoint", "remat", "remat2"):
                yield inner
            yield from recomputed_parts(inner)


def test_remat_changes_no_value_and_no_gradient(x64):
    values, texts, ids = [], set(), random_ids(tokens=5)
    for remat in (False, True, *POLICIES):
        options = {"remat": remat, "param_dtype": jnp.float64}
        params, apply = functional(random_decoder("qwen2", options=options))

        def loss(params, apply=apply):
            return jnp.square(apply(params, ids)).mean()

        if remat in (False, True):
            values.append(jax.jit(jax.value_and_grad(loss))(params))
        jaxpr = jax.make_jaxpr(loss)(params)
        # A gated MLP alone computes no product again.
        again = recomputed_parts(jaxpr.jaxpr)
        assert any("dot_general" in str(part) for part in again) == bool(remat)
        texts.add(re.sub("0x[0-9a-f]+", "", str(jaxpr)))
    assert len(texts) == 2 + len(POLICIES)  # each of them is another program
    for plain, recomputed in zip(*map(jax.tree.leaves, values), strict=True):
        np.testing.assert_allclose(recomputed, plain, rtol=1e-12, atol=1e-12)


def test_a_gated_mlp_keeps_its_two_halves_alone():
    """For the gradient of its input, where no weight has one."""
    model, ids = random_decoder("llama"), random_ids()
    params, apply = functional(model)

    def logits(table):
        return apply({**params, "embedding": {"embedding": table}}, ids)

    _, pull_back = jax.vjp(logits, params["embedding"]["embedding"])
    of_a_half = (*ids.shape, model.config.intermediate_size)
    kept = [leaf.size for leaf in jax.tree.leaves(pull_back) if leaf.shape[-3:] == of_a_half]
    assert sum(kept) == 2 * model.config.num_hidden_layers * math.prod(of_a_half)


def test_attention_dropout_is_a_function_of_its_key():
    params, apply = functional(random_decoder("llama", attention_dropout=0.5))
    ids, plain = random_ids(), functional(random_decoder("llama"))
    np.testing.assert_array_equal(apply(params, ids), plain[1](params, ids))
    one, same, other = (apply(params, ids, rng=jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


def test_wrong_calls_are_named():
    model, ids = random_decoder("llama"), random_ids()
    with pytest.raises(ValueError, match=r"input_ids must be \(batch, tokens\), got \(8,\)"):
        model(ids[0])
    with pytest.raises(ValueError, match=r"attention_mask must be \(2, 8\) .* got \(2, 7\)"):
        model(ids, jnp.ones((2, 7)))
    with pytest.raises(ValueError, match=r"segments must be \(2, 8\) .* got \(1, 8\)"):
        model(ids, segments=ids[:1])
    with pytest.raises(ValueError, match="65 tokens; the model takes at most 64"):
        random_decoder("llama_dynamic")(jnp.zeros((1, 65), jnp.int32))
    with pytest.raises(ValueError, match="remat must be True, False or one of nothing_saveable"):
        random_decoder("llama", options={"remat": "some"})
    with pytest.raises(ValueError, match="implementation must be None or one of xla, cudnn"):
        random_decoder("llama", options={"implementation": "flash"})
