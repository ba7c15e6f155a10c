"""The methods that differ from LoRA by little, or adapt nothing, each against its formula."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo.check as check
from flax import nnx
from jax import lax

import lora_jax as lj
import variants
from lora_jax.models.families.bert import BertClassifier
from lora_jax.models.families.bert_config import BertConfig
from lora_jax.partition import flatten
from lora_jax.variant import Base, Factors
from variants.bitfit import BitFit
from variants.full import Full
from variants.head_only import HeadOnly
from variants.hira import HiRA
from variants.ia3 import IA3
from variants.lora import LoRA
from variants.lora_fa import LoRAFA
from variants.rslora import RsLoRA

KEY = jax.random.key(0)


def base_of(shape, seed=0, dtype=jnp.float64):
    return Base(jnp.asarray(np.random.RandomState(seed).randn(*shape).astype(dtype)), "io")


init = jax.jit(lambda variant, base: variant.init(jax.random.key(1), base), static_argnums=0)


def factors_of(variant, base, seed=1):
    trainable, constants = init(variant, base)
    random = np.random.RandomState(seed)
    moved = {n: x + random.randn(*x.shape) for n, x in jax.tree.map(np.asarray, trainable).items()}
    return Factors(moved, constants)


@functools.partial(jax.jit, static_argnums=0)
def uses(variant, base, factors, x, z, rows):
    products = variant.dot(x, base, factors), variant.dot_t(z, base, factors)
    return variant.weight(base, factors), *products, variant.take(rows, base, factors)


def assert_is_weight(variant, base, factors, w):
    """All uses of a matrix are those of `w`."""
    x, z = (
        np.random.RandomState(i).randn(1, 2, n) for i, n in zip((3, 4), base.shape, strict=True)
    )
    rows, w = np.array([[0, base.shape[0] - 1], [1, 1]]), np.asarray(w)
    check.assert_close(
        uses(variant, base, factors, x, z, rows), (w, x @ w, z @ w.T, w[rows]), 1e-12
    )


# -- rsLoRA ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank, alpha", [(4, 16.0), (9, 0.5)])
def test_rslora_divides_by_the_root_of_the_rank(rank, alpha, x64):
    base, variant = base_of((12, 10)), RsLoRA(rank=rank, alpha=alpha)
    factors = factors_of(variant, base)
    update = np.asarray(factors.trainable["a"]).T @ np.asarray(factors.trainable["b"])
    assert_is_weight(variant, base, factors, base.value + alpha / math.sqrt(rank) * update)
    plain = LoRA(rank=rank, alpha=alpha * math.sqrt(rank))
    constants = init(plain, base).constants
    np.testing.assert_allclose(constants["scale"], factors.constants["scale"], rtol=1e-14)


@pytest.mark.parametrize("rank, alpha", [(16, 4.0), (64, 4.0)])
def test_rslora_trains_as_lora_with_a_larger_alpha_bit_for_bit(rank, alpha):
    """Where the root of the rank is exact, both scales round to the same number."""
    x, y = (jnp.asarray(np.random.RandomState(i).randn(4, 12), jnp.float32) for i in (5, 6))
    trained = []
    for variant in (RsLoRA(rank=rank, alpha=alpha), LoRA(rank=rank, alpha=alpha * rank**0.5)):
        adapted = lj.adapt(lambda params, x: x @ params["w"], variant, ["w"])
        trainable, frozen = adapted.init(KEY, {"w": jnp.eye(12)}, x)
        gradient = jax.jit(
            jax.grad(lambda t, f, a=adapted: jnp.square(a.apply(t, f, x) - y).mean())
        )
        for _ in range(3):
            step = gradient(trainable, frozen)
            trainable = jax.tree.map(lambda leaf, g: leaf - jnp.float32(0.1) * g, trainable, step)
        trained.append(flatten(trainable)[0])
    (one, other) = trained
    assert one.keys() == other.keys() and one
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[name])
        assert np.abs(np.asarray(leaf)).max() > 0


def test_the_size_of_outputs_does_not_depend_on_the_rank_in_rslora():
    """The statement of the paper, for random factors of unit size."""

    def size(variant):
        a, b = (np.random.RandomState(i).randn(variant.rank, 256) for i in (1, 2))
        return variant.scaling() * np.linalg.norm(a.T @ b) / 256

    grown = {kind: size(kind(rank=256)) / size(kind(rank=4)) for kind in (RsLoRA, LoRA)}
    assert 0.9 < grown[RsLoRA] < 1.1 and grown[LoRA] < 0.15


# -- LoRA+ -------------------------------------------------------------------------------------


def two_layers(params, x):
    x = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["stack"])[0]
    return x @ params["w"] + params["bias"][None]


def training(variant, **options):
    shapes = {"stack": (2, 6, 6), "w": (6, 5), "bias": (5,)}
    params = check.random_like({n: np.zeros(shape) for n, shape in shapes.items()}, 0)
    x = check.random_like(np.zeros((4, 6)), 1)
    adapted = lj.adapt(two_layers, variant, ["stack", "w"], also_train="bias", **options)
    return adapted, params, x


def one_step(adapted, params, x, tx, ratio=None):
    """What one step of an optimiser changes, perhaps at another ratio."""
    trainable, frozen = adapted.init(KEY, params, x)
    if ratio is not None:
        constants = {
            path: {**each, "ratio": jnp.broadcast_to(ratio, each["ratio"].shape)}
            for path, each in frozen.constants.items()
        }
        frozen = dataclasses.replace(frozen, constants=constants)
    tx = adapted.optimizer(tx, frozen)
    moved = jax.tree.map(jnp.add, trainable, check.random_like(trainable, 2))
    gradient = jax.grad(lambda t: jnp.sum(adapted.apply(t, frozen, x) ** 2))(moved)
    return tx.update(gradient, tx.init(moved), moved)[0]


@pytest.mark.parametrize("name", ["lora_plus", "dora", "lora_fa", "adalora", "vera"])
def test_only_b_has_its_own_rate(name, x64, standard_promotion):
    settings = {"rank": 2} | ({"target_rank": 1} if name == "adalora" else {})
    plain = variants.make(name, learning_rate_ratio=1.0, **settings)
    fast = dataclasses.replace(plain, learning_rate_ratio=7.0)
    tx = optax.adamw(0.1) if name == "dora" else optax.sgd(0.1)
    (adapted, params, x), (faster, _, _) = map(training, (plain, fast))
    wanted, got = jax.jit(
        lambda params, x: [one_step(each, params, x, tx) for each in (adapted, faster)]
    )(params, x)
    np.testing.assert_array_equal(got["params"]["bias"], wanted["params"]["bias"])
    for path, updates in wanted["adapters"].items():
        for factor, update in updates.items():
            ratio = 7.0 if factor == "b" else 1.0
            update = np.asarray(update)
            assert update.any()
            np.testing.assert_allclose(got["adapters"][path][factor], ratio * update, rtol=1e-12)


def test_without_a_ratio_the_optimiser_is_the_given_one():
    adapted, *given = training(variants.make("lora_plus", rank=2, learning_rate_ratio=1.0))
    _, frozen = jax.eval_shape(adapted.init, KEY, *given)
    tx = optax.sgd(0.1)
    assert adapted.optimizer(tx, frozen) is tx
    assert variants.make("lora_plus").learning_rate_ratio == 4.0


def test_ratios_are_traced(x64):
    """A sweep maps over them, and another ratio compiles nothing."""
    adapted, params, x = training(variants.make("lora_plus", rank=2))
    traces = []

    def step(ratio):
        traces.append(ratio)
        return one_step(adapted, params, x, optax.sgd(0.1), ratio)

    compiled = jax.jit(step)
    ratios = np.array([0.0, 1.0, 16.0])
    separately = [jax.tree.map(np.asarray, compiled(ratio)) for ratio in ratios]
    assert len(traces) == 1
    together = jax.jit(jax.vmap(step))(ratios)
    check.assert_close(together, jax.tree.map(lambda *leaves: np.stack(leaves), *separately))
    for ratio, updates in zip(ratios, separately, strict=True):
        for path, each in updates["adapters"].items():
            np.testing.assert_allclose(
                each["b"], ratio * separately[1]["adapters"][path]["b"], rtol=1e-12
            )


def test_patterns_have_their_own_ratios(x64):
    targets = {lj.layers("stack", slice(0, 2)): variants.make("lora_plus", rank=2), "w": LoRA(2)}
    shapes = {"stack": (2, 6, 6), "w": (6, 5), "bias": (5,)}
    params = {n: np.zeros(shape) for n, shape in shapes.items()}
    adapted = lj.adapt(two_layers, targets=targets)

    @jax.jit
    def updates(params):
        trainable, frozen = adapted.init(KEY, params, np.zeros((4, 6)))
        ones = jax.tree.map(jnp.ones_like, trainable)
        tx = adapted.optimizer(optax.sgd(-1.0), frozen)
        return tx.update(ones, tx.init(ones))[0]

    adapters = updates(params)["adapters"]
    found = {
        path: {n: set(np.ravel(u)) for n, u in each.items()} for path, each in adapters.items()
    }
    assert found == {"stack": {"a": {1.0}, "b": {4.0}}, "w": {"a": {1.0}, "b": {1.0}}}


@pytest.mark.parametrize("ratio", [-1.0, math.inf, math.nan])
def test_bad_ratios_are_refused(ratio):
    message = f"learning_rate_ratio must be finite and at least 0, got {ratio}"
    for name in ("lora_plus", "dora"):
        with pytest.raises(ValueError, match=re.escape(message)):
            variants.make(name, learning_rate_ratio=ratio)


# -- LoRA-FA -----------------------------------------------------------------------------------


def test_lora_fa_is_lora_whose_a_is_a_constant(x64):
    base, variant = base_of((7, 5)), LoRAFA(rank=3, alpha=6.0)
    factors = factors_of(variant, base)
    assert set(factors.trainable) == {"b"} and variant.count((7, 5)) == 15
    same = init(LoRA(rank=3, alpha=6.0), base).trainable["a"]
    np.testing.assert_array_equal(factors.constants["a"], same)
    update = np.asarray(same).T @ np.asarray(factors.trainable["b"])
    assert_is_weight(variant, base, factors, base.value + 2.0 * update)

    adapted, params, x = training(variant)

    @jax.jit
    def gradient_at_start(params):
        trainable, frozen = adapted.init(KEY, params, x)
        return jax.grad(lambda t: jnp.sum(adapted.apply(t, frozen, x) ** 2))(trainable)

    gradient = gradient_at_start(params)
    assert {p: set(g) for p, g in gradient["adapters"].items()} == {"stack": {"b"}, "w": {"b"}}
    assert all(np.asarray(g["b"]).any() for g in gradient["adapters"].values())


def wide_step(variant, tokens=256, width=128):
    """A layer behind a frozen one: the gradient, and the residuals that are as long as a batch."""

    def forward(params, x):
        return (x @ params["w"]) @ params["v"]

    shapes = {"w": (width, width), "v": (width, width)}
    params = {n: jax.ShapeDtypeStruct(shape, jnp.float32) for n, shape in shapes.items()}
    x = jax.ShapeDtypeStruct((tokens, width), jnp.float32)
    adapted = lj.adapt(forward, variant, ["w", "v"])
    trainable, frozen = jax.eval_shape(adapted.init, KEY, params, x)

    def loss(trainable, frozen, x):
        return jnp.sum(adapted.apply(trainable, frozen, x))

    flops = jax.jit(jax.grad(loss)).lower(trainable, frozen, x).compile().cost_analysis()["flops"]
    pull = jax.eval_shape(
        lambda t, f, x: jax.vjp(lambda t: loss(t, f, x), t)[1], trainable, frozen, x
    )
    kept = [leaf.shape for leaf in jax.tree.leaves(pull) if tokens in leaf.shape]
    return flops, sum(sum(shape) - tokens for shape in kept)


def test_lora_fa_keeps_short_residuals_and_computes_less():
    rank, width, tokens = 8, 128, 256
    (flops, kept), (flops_fa, kept_fa) = (wide_step(kind(rank=rank)) for kind in (LoRA, LoRAFA))
    assert kept >= 2 * width  # the input of each layer, for the gradient of its A
    assert kept_fa <= 2 * rank  # of each layer, x A^T
    # The gradients of both A, and for the first layer's that of x A^T, which nothing else needs.
    saved = 3 * 2 * tokens * width * rank
    assert flops - flops_fa == pytest.approx(saved, rel=0.05)


# -- IA3 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scales", ["outputs", "inputs"])
def test_ia3_scales_columns_or_rows(scales, x64):
    shape = (7, 5)
    base, variant = base_of(shape), IA3(scales=scales)
    start = init(variant, base)
    size = shape[1] if scales == "outputs" else shape[0]
    np.testing.assert_array_equal(start.trainable["l"], np.ones(size))
    assert variant.count(shape) == size and not start.constants
    assert_is_weight(variant, base, start, base.value)
    factors = factors_of(variant, base)
    l, w = np.asarray(factors.trainable["l"]), np.asarray(base.value)
    w = w @ np.diag(l) if scales == "outputs" else np.diag(l) @ w
    assert_is_weight(variant, base, factors, jnp.asarray(w))


def test_ia3_of_keys_and_feed_forward_inputs_is_the_papers(x64):
    """l on keys, values and what enters the second matrix, as vectors beside the weights."""

    def forward(p, x):
        scores = (x @ p["query"]) @ (x @ p["key"]).T
        y = jax.nn.softmax(scores) @ (x @ p["value"])
        return jnp.tanh(y @ p["up"]) @ p["down"]

    def papers(p, x, l):
        scores = (x @ p["query"]) @ (x @ p["key"] * l["key"][None]).T
        y = jax.nn.softmax(scores) @ (x @ p["value"] * l["value"][None])
        return (jnp.tanh(y @ p["up"]) * l["down"][None]) @ p["down"]

    shapes = dict.fromkeys(("query", "key", "value"), (6, 6)) | {"up": (6, 9), "down": (9, 6)}
    params = check.random_like({n: np.zeros(shape) for n, shape in shapes.items()}, 0)
    x = check.random_like(np.zeros((4, 6)), 1)
    adapted = lj.adapt(forward, targets={"key|value": IA3(), "down": IA3(scales="inputs")})

    @jax.jit
    def both(params, x):
        trainable, frozen = adapted.init(KEY, params, x)
        sizes = {path: f["l"].size for path, f in trainable["adapters"].items()}
        l = {path: 1 + np.arange(size) / 5 for path, size in sizes.items()}
        moved = {**trainable, "adapters": {path: {"l": jnp.asarray(l[path])} for path in l}}
        return adapted.apply(moved, frozen, x), papers(params, x, l)

    np.testing.assert_allclose(*both(params, x), atol=1e-12)


def test_ia3_sides_are_named():
    with pytest.raises(ValueError, match="scales 'both': expected outputs or inputs"):
        variants.make("ia3", scales="both")


# -- HiRA --------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"alpha": 3.0}, {"alpha": 8.0, "scale": "alpha/rank"}])
def test_hira_multiplies_the_weight_entry_by_entry(settings, x64):
    base, variant = base_of((9, 7)), HiRA(rank=2, **settings)
    factors = factors_of(variant, base)
    a, b = (np.asarray(factors.trainable[n]) for n in "ab")
    scale = {0: 1.0, 1: 3.0, 2: 4.0}[len(settings)]
    w = np.asarray(base.value) * (1 + scale * a.T @ b)
    assert_is_weight(variant, base, factors, jnp.asarray(w))
    assert np.linalg.matrix_rank(w - np.asarray(base.value)) == 7  # far beyond its own 2
    assert variant.count((9, 7)) == 32


def test_hira_drops_the_inputs_of_the_update(x64):
    base, variant = base_of((9, 7)), HiRA(rank=2, dropout=0.4)
    factors = factors_of(variant, base)
    w, x = np.asarray(base.value), np.random.RandomState(3).randn(4, 9)
    update = w * (np.asarray(factors.trainable["a"]).T @ np.asarray(factors.trainable["b"]))

    @jax.jit
    @jax.vmap
    def dot(key):
        kept = jax.random.bernoulli(key, jnp.asarray(0.6), x.shape)
        return variant.dot(jnp.asarray(x), base, factors, dropout_key=key), kept

    ys, kept = map(np.asarray, dot(jax.random.split(KEY, 4000)))
    np.testing.assert_allclose(ys, x @ w + np.where(kept, x, 0) / 0.6 @ update, atol=1e-12)
    error = np.abs(ys.mean(0) - x @ (w + update))
    assert (error < 4.5 * ys.std(0) / math.sqrt(len(ys))).all()  # 28 numbers


# -- partitions --------------------------------------------------------------------------------


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


def trained(bert, *args, **options):
    """The paths that train, in full and by adapters."""
    forward, params, batch = bert
    adapted = lj.adapt(forward, *args, **options)
    trainable, frozen = jax.eval_shape(lambda: adapted.init(KEY, params, *batch))
    assert not trainable["params"].keys() & frozen.base.keys()
    assert set(frozen.spec.paths) == trainable["params"].keys() | frozen.base.keys()
    return set(trainable["params"]), set(trainable["adapters"])


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


def paths(bert, pattern=".*"):
    floats = {p for p, x in flatten(bert[1])[0].items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return {path for path in floats if re.fullmatch(pattern, path)}


QUERY = "model/layers/attention/query/kernel"


def test_full_trains_every_number_that_floats(bert):
    assert trained(bert, Full()) == (paths(bert), set())
    assert len(paths(bert)) == len(flatten(bert[1])[0]) - 1 == 25  # all but `steps`
    targets = "(query|value)/kernel"
    assert trained(bert, Full(), targets) == (paths(bert), set())
    only = paths(bert, f".*{targets}")
    assert trained(bert, Full(only_targets=True), targets) == (only, set()) and len(only) == 2
    head = trained(bert, Full(only_targets=True), targets, also_train="classifier/.*")
    assert head == (only | paths(bert, ".*classifier/.*"), set())


def test_bitfit_trains_the_biases(bert):
    biases = {path for path in paths(bert) if path.endswith("/bias")}
    assert len(biases) == 11 and "model/layers/attention/norm/bias" in biases
    assert trained(bert, BitFit()) == (biases, set())
    assert trained(bert, BitFit(), "query/kernel") == (biases, set())  # targets do not matter
    assert trained(bert, BitFit(), also_train="classifier/.*")[0] == biases | {
        "model/classifier/kernel"
    }
    some = {f"model/layers/{name}/bias" for name in ("attention/query", "up")}
    assert trained(bert, BitFit(r"(.*/)?(query|up)/bias")) == (some, set())


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


def test_head_only_trains_what_it_is_told(bert):
    head = paths(bert, ".*(classifier|pooler)/.*")
    assert trained(bert, HeadOnly(), also_train=["classifier/.*", "pooler/.*"]) == (head, set())
    assert len(head) == 4


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


def test_a_bad_pattern_is_named():
    with pytest.raises(ValueError, match=re.escape("pattern '(bias' is no regular expression: ")):
        variants.make("bitfit", pattern="(bias")


def test_partitions_beside_adapters(bert):
    """A mapping of targets may mix them; an adapted weight is never trained in full as well."""
    biases = {path for path in paths(bert) if path.endswith("/bias")}
    targets = {"query/kernel": LoRA(rank=2), "value/kernel": BitFit()}
    assert trained(bert, targets=targets) == (biases, {QUERY})
    targets = {"query/kernel": LoRA(rank=2), "value/kernel": Full(only_targets=True)}
    value = {"model/layers/attention/value/kernel"}
    assert trained(bert, targets=targets) == (value, {QUERY})
    targets = {"query/kernel": LoRA(rank=2), "value/kernel": Full()}
    assert trained(bert, targets=targets) == (paths(bert) - {QUERY}, {QUERY})


def test_partitions_of_some_layers(bert):
    """What is stacked trains whole or not at all, but for adapters."""
    some = lj.layers("query/kernel", 1)
    assert trained(bert, targets={some: Full(only_targets=True)}) == ({QUERY}, set())
    targets = {some: LoRA(rank=2), lj.layers("query/kernel", 0): HeadOnly()}
    assert trained(bert, targets=targets) == (set(), {QUERY})
    biases = {path for path in paths(bert) if path.endswith("/bias")}
    assert trained(bert, targets={some: BitFit()}) == (biases, set())
