"""Full, BitFit and head-only train exactly the parameters they choose, alone or beside adapters."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lora_jax as lj
from lora_jax.models.families.bert import BertClassifier, BertConfig
from lora_jax.partition import flatten
from variants.bitfit import BitFit
from variants.full import Full
from variants.head_only import HeadOnly
from variants.lora import LoRA

KEY = jax.random.key(0)
QUERY = "model/layers/attention/query/kernel"


@pytest.fixture(scope="module")
def bert():
    """A tiny BERT with an integer parameter beside it, and an input."""
    config = BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=9,
    )
    make = nnx.jit(lambda: BertClassifier(config, 2, rngs=nnx.Rngs(0)))
    model, params = lj.from_nnx(make())

    def forward(params, ids, mask):
        return model(params["model"], ids + 0 * params["steps"], mask)

    ids = jnp.array([[3, 4, 5, 0], [1, 2, 0, 0]])
    return forward, {"model": params, "steps": jnp.zeros((), jnp.int32)}, (ids, jnp.sign(ids))


def trained(bert, variant, **options):
    """The paths that train, in full and by adapters."""
    forward, params, batch = bert
    adapted = lj.adapt(forward, variant, **options)
    trainable, frozen = jax.eval_shape(lambda: adapted.init(KEY, params, *batch))
    assert not trainable["params"].keys() & frozen.base.keys()
    assert set(frozen.spec.paths) == trainable["params"].keys() | frozen.base.keys()
    return set(trainable["params"]), set(trainable["adapters"])


def paths(bert, pattern=".*"):
    floats = {p for p, x in flatten(bert[1])[0].items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return {path for path in floats if re.fullmatch(pattern, path)}


@pytest.mark.parametrize(
    "variant, options",
    [
        (Full(), {}),
        (HeadOnly(), {"also_train": "classifier/.*"}),
        (None, {"targets": {"query/kernel": LoRA(rank=2), "value/kernel": BitFit()}}),
    ],
    ids=["full", "head_only", "mixed"],
)
def test_exactly_what_trains_is_changed(bert, variant, options):
    """By a gradient, a step and merging; nothing that is frozen moves by a bit."""
    forward, params, batch = bert
    adapted = lj.adapt(forward, variant, **options)

    @jax.jit
    def step(params):
        trainable, frozen = adapted.init(KEY, params, *batch)
        loss = jax.grad(lambda t: jnp.sum(adapted.apply(t, frozen, *batch)[:, 0] ** 2))
        moved = jax.tree.map(lambda x, g: x - g - 1e-3, trainable, loss(trainable))
        merged = adapted.merge(moved, frozen)
        return trainable, merged, adapted.apply(moved, frozen, *batch), forward(merged, *batch)

    trainable, merged, got, wanted = step(params)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    original, new = flatten(params)[0], flatten(merged)[0]
    changed = {
        path for path, x in new.items() if (np.asarray(x) != np.asarray(original[path])).any()
    }
    assert changed == trainable["params"].keys() | trainable["adapters"].keys()
    assert new["steps"].dtype == jnp.int32


TARGETS = "(query|value)/kernel"
BIASES = ".*/bias"
SOME = lj.layers("query/kernel", 1)
LORA = {"query/kernel": LoRA(rank=2)}
CHOSEN = [  # the variant, options, and what trains, in full and by adapters
    (Full(), {}, ".*", set()),
    (Full(), {"targets": TARGETS}, ".*", set()),
    (Full(only_targets=True), {"targets": TARGETS}, f".*{TARGETS}", set()),
    (
        Full(only_targets=True),
        {"targets": TARGETS, "also_train": "classifier/.*"},
        f".*({TARGETS}|classifier/.*)",
        set(),
    ),
    (BitFit(), {}, BIASES, set()),
    (BitFit(), {"targets": "query/kernel"}, BIASES, set()),  # targets do not matter
    (BitFit(), {"also_train": "classifier/.*"}, f"{BIASES}|model/classifier/kernel", set()),
    (BitFit(r"(.*/)?(query|up)/bias"), {}, "model/layers/(attention/query|up)/bias", set()),
    (
        HeadOnly(),
        {"also_train": ["classifier/.*", "pooler/.*"]},
        ".*(classifier|pooler)/.*",
        set(),
    ),
    # Beside adapters: an adapted weight is never trained in full as well.
    (None, {"targets": LORA | {"value/kernel": BitFit()}}, BIASES, {QUERY}),
    (
        None,
        {"targets": LORA | {"value/kernel": Full(only_targets=True)}},
        "model/layers/attention/value/kernel",
        {QUERY},
    ),
    (None, {"targets": LORA | {"value/kernel": Full()}}, f"(?!{QUERY}$).*", {QUERY}),
    # Of some layers: what is stacked trains whole or not at all, but for adapters.
    (None, {"targets": {SOME: Full(only_targets=True)}}, QUERY, set()),
    (
        None,
        {"targets": {SOME: LoRA(rank=2), lj.layers("query/kernel", 0): HeadOnly()}},
        "nothing",
        {QUERY},
    ),
    (None, {"targets": {SOME: BitFit()}}, BIASES, set()),
]


@pytest.mark.parametrize("variant, options, full, adapters", CHOSEN)
def test_what_is_chosen_trains(bert, variant, options, full, adapters):
    assert trained(bert, variant, **options) == (paths(bert, full), adapters)


def test_patterns_here_mean_something(bert):
    assert len(paths(bert)) == len(flatten(bert[1])[0]) - 1 == 25  # all but `steps`
    assert len(paths(bert, BIASES)) == 11
    assert "model/layers/attention/norm/bias" in paths(bert, BIASES)
    assert len(paths(bert, f".*{TARGETS}")) == 2
    assert len(paths(bert, ".*(classifier|pooler)/.*")) == 4
    assert len(paths(bert, "model/layers/(attention/query|up)/bias")) == 2


@pytest.mark.parametrize(
    "path, is_bias",
    [
        *((path, True) for path in ("b", "beta", "bias", "layer/0/b", "ln/beta", "in_proj_bias")),
        *((path, True) for path in ("attn/q_bias", "h/conv_b")),
        *(
            (path, False)
            for path in ("kernel", "bias/kernel", "ab", "unbias", "biases", "alphabeta")
        ),
    ],
)
def test_bitfit_knows_biases_by_name(path, is_bias):
    use = lj.discover(lambda p: p["w"] + 1, {"w": jnp.ones(2)})["w"]
    assert BitFit().trains(path, use, targeted=False) is is_bias


@pytest.mark.parametrize(
    "variant, options, message",
    [
        (
            HeadOnly(),
            {},
            "nothing would train: HeadOnly adapts nothing; name parameters in also_train",
        ),
        (BitFit("nothing"), {}, "nothing would train: BitFit adapts nothing; name param"),
        (HeadOnly(), {"also_train": "clasifier/.*"}, "pattern 'clasifier/.*' matches no parameter"),
        (Full(), {"targets": "qery/kernel"}, "pattern 'qery/kernel' matches no weight; nearest:"),
        (HeadOnly(), {"also_train": "steps"}, "'steps' cannot be trained: its dtype is int32"),
        (
            Full(),
            {"quantize": {"query/kernel": lj.NF4()}},
            f"'{QUERY}' is trained in full, and cannot be quantised",
        ),
    ],
)
def test_what_cannot_train_is_named(bert, variant, options, message):
    forward, params, batch = bert
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        lj.adapt(forward, variant, **options).init(KEY, params, *batch)
    assert "\n" not in str(error.value)
