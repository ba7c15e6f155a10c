"""Adapters combined: the model acts with W + the combination of dW, whatever the methods were."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import own_code
import pytest

import lora_jax as lj
import variants
from lora_jax.adapters.merging import ties
from lora_jax.contract import toys
from lora_jax.contract.clause import by_numpy
from lora_jax.contract.toys import noisy

# Toys have random trainables, as if AdaLoRA's budget had been forgotten.
pytestmark = pytest.mark.filterwarnings("ignore::lora_jax.TrainingWarning")
LORA = variants.make("lora")
LORA_OF_2 = variants.make("lora", rank=2)
WEIGHTS = (0.7, -0.4)


def merged(toy, trainable, frozen=None):
    """The parameters that the model acts with, by path, float64."""
    toy = dataclasses.replace(toy, frozen=frozen or toy.frozen)
    tree, _ = toy.merged(trainable)
    leaves = jax.tree.leaves(tree)
    return {
        p: np.asarray(x, np.float64) for p, x in zip(toy.frozen.spec.paths, leaves, strict=True)
    }


def base(toy):
    """The parameters of the base, as it is stored, and those that train as they began."""
    leaves = jax.tree.leaves(toy.adapted.disable(toy.trainable, toy.frozen))
    return {
        p: np.asarray(x, np.float64) for p, x in zip(toy.frozen.spec.paths, leaves, strict=True)
    }


def expected(start, weights, *runs):
    """W + sum w_i (W_i' - W) of every parameter."""
    return {
        path: value + sum(w * (run[path] - value) for w, run in zip(weights, runs, strict=True))
        for path, value in start.items()
    }


def require_equal(found, wanted, tolerance=1e-10):
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_allclose(found[path], value, rtol=0, atol=tolerance, err_msg=path)


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
@pytest.mark.parametrize("name", own_code.names())
def test_the_sum_of_two_adapters_of_any_method(name):
    """A lookup and tied head, and stacked layers with heads; a rank that holds every update."""
    toy = toys.toy(variants.make(name), targets=toys.SOME)
    one, two = toy.moved, noisy(toy.trainable, seed=8)
    combined = lj.combine_adapters(
        [(one, toy.frozen), (two, toy.frozen)],
        LORA,
        WEIGHTS,
        rank=10**6,
        start=toy.trainable["params"],
    )
    wanted = expected(base(toy), WEIGHTS, merged(toy, one), merged(toy, two))
    require_equal(merged(toy, *combined[:2]), wanted)
    for each in combined.errors.values():
        assert np.max(each) < 1e-7


def forward(params, x):
    """Two layers of one stack, a matrix in two axes with a bias, and a head."""
    for layer in range(2):
        x = x + jnp.tanh(x @ params["layers"][layer])
    x = jnp.einsum("bi,hik->bhk", x, params["heads"]) + params["bias"][None]
    return jnp.einsum("bhk,hk->b", x, params["last"])


SHAPES = {"layers": (2, 6, 6), "heads": (2, 6, 4), "bias": (2, 4), "last": (2, 4)}
NF4 = {"layers|heads": lj.NF4(block=2)}


def drawn(seed, scale=0.5):
    rng = np.random.default_rng(seed)
    return {name: scale * rng.standard_normal(shape) for name, shape in SHAPES.items()}


X = np.random.default_rng(5).standard_normal((3, 6))


def run(seed, targets, also_train=(), quantize=None, params=None):
    """An adapter with random trainables, and what it is an adapter of."""
    adapted = lj.adapt(forward, None, targets, also_train, quantize)
    params = jax.tree.map(jnp.asarray, drawn(0) if params is None else params)
    begun, frozen = jax.jit(adapted.init)(jax.random.key(seed), params, X)
    return adapted, noisy(begun, seed), frozen, begun


def acting(adapted, trainable, frozen):
    return by_numpy(adapted.merge)(trainable, frozen)


RANKS = {
    lj.layers("layers", 0): variants.make("lora", rank=2, alpha=3),
    lj.layers("layers", 1): variants.make("lora", rank=1),
}


def test_what_any_of_them_trains_in_full_is_known_to_be_so():
    """An optimiser keeps master weights of these, and Muon takes their matrices."""
    runs = [run(seed, {"layers": LORA}, also) for seed, also in enumerate(((), ["last"]))]
    for each in (runs, runs[::-1]):
        combined = lj.combine_adapters([one[1:3] for one in each], LORA, rank=2)
        assert [use.path for use in combined.frozen.spec.full] == ["last"]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("quantize", [None, NF4])
def test_different_methods_ranks_layers_and_weights(quantize, tmp_path):
    """One without the first layer, one with unequal ranks, one with another weight and a head.

    dW is relative to the weight as it is stored. The result is an adapter like any other.
    """
    targets = [
        {lj.layers("layers", 1): variants.make("dora", rank=3)},
        RANKS,
        {"heads": variants.make("pissa", rank=2, initialization="pissa")},
    ]
    runs = [run(n, each, ["last"][: n // 2], quantize) for n, each in enumerate(targets)]
    weights = (1.5, -0.5, 2.0)
    combined = lj.combine_adapters([each[1:3] for each in runs], LORA, weights, rank=6)
    adapted, trainable, frozen, _ = runs[0]
    start = {**acting(adapted, trainable, frozen), **drawn(0)}
    if quantize:
        plain = dataclasses.replace(adapted, rules=runs[2][0].rules)
        start |= by_numpy(plain.disable)(trainable, frozen)
        assert np.abs(start["layers"] - drawn(0)["layers"]).max() > 1e-3
    wanted = expected(start, weights, *(acting(*each[:3]) for each in runs))
    require_equal(acting(adapted, *combined[:2]), wanted)
    shape = {"layers|heads": dataclasses.replace(LORA, rank=6, alpha=6.0)}
    other, *fresh, _ = run(9, shape, ["last"], quantize)
    path = lj.save_adapter(tmp_path, *combined[:2])
    read = lj.load_adapter(path, *fresh)
    require_equal(acting(other, *read[:2]), wanted)
    begun = lj.start_from(path, *fresh)
    np.testing.assert_allclose(other.apply(*begun, X), forward(wanted, X), atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_a_weight_that_one_trains_in_full_and_biases_combine_linearly():
    """IA3 rescales a bias, too; LoRA cannot, so the bias trains in full afterwards."""
    runs = [
        run(1, {"layers": variants.make("full", only_targets=True)}),
        run(2, {"layers": LORA_OF_2}),
        run(3, {"heads": variants.make("ia3", biases=True)}),
    ]
    weights = (0.5, 2.0, 3.0)
    combined = lj.combine_adapters([each[1:3] for each in runs], LORA, weights, rank=6)
    wanted = expected(drawn(0), weights, *(acting(*each[:3]) for each in runs))
    require_equal(acting(runs[0][0], *combined[:2]), wanted)
    assert combined.trainable["params"].keys() == {"layers", "bias"}
    assert combined.trainable["adapters"].keys() == {"heads"}
    assert not {"layers", "bias"} & combined.frozen.base.keys()


@pytest.mark.usefixtures("x64")
def test_heads_alone_need_their_start_where_weights_do_not_sum_to_one():
    runs = [run(n, {"heads": LORA_OF_2}, ["last"]) for n in (1, 2)]
    adapters = [each[1:3] for each in runs]
    start = runs[0][3]["params"]  # both begin as the base does
    wanted = expected(drawn(0), (-1, -2), *(acting(*each[:3]) for each in runs))
    negated = lj.combine_adapters(adapters, LORA, (1, 2), "negate", start=start)
    require_equal(acting(runs[0][0], *negated[:2]), wanted)
    with pytest.raises(ValueError, match="'last' is trained in full by every adapter"):
        lj.combine_adapters(adapters, LORA, by="negate")
    one, two = (acting(*each[:3]) for each in runs)
    halfway = lj.combine_adapters(adapters, LORA, by="interpolate")
    require_equal(acting(runs[0][0], *halfway[:2]), {n: (one[n] + two[n]) / 2 for n in one})


@pytest.mark.usefixtures("x64")
def test_heads_that_began_at_random_add_what_each_has_learnt():
    """The second's start is not part of the sum."""
    other = {**drawn(0), "last": drawn(1)["last"]}
    runs = [run(n, {"heads": LORA_OF_2}, ["last"], None, p) for n, p in ((1, None), (2, other))]
    adapters, starts = [each[1:3] for each in runs], [each[3]["params"] for each in runs]
    one, two = (trainable["params"]["last"] for trainable, _ in adapters)
    summed = lj.combine_adapters(adapters, LORA, (1, 2), start=starts)
    wanted = drawn(0)["last"] + (one - drawn(0)["last"]) + 2 * (two - other["last"])
    np.testing.assert_allclose(summed.trainable["params"]["last"], wanted, atol=1e-12)
    with pytest.raises(ValueError, match="1 starts for 2 adapters"):
        lj.combine_adapters(adapters, LORA, (1, 2), start=starts[:1])
    frozen_head = run(3, {"heads": LORA_OF_2})[1:3]  # which has learnt nothing, wherever it began
    summed = lj.combine_adapters([adapters[1], frozen_head], LORA, (2, 3), start=starts[1])
    wanted = other["last"] + 2 * (two - other["last"])
    np.testing.assert_allclose(summed.trainable["params"]["last"], wanted, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_ties_and_a_cut_are_made_of_each_layer():
    runs = [run(n, {"layers": LORA_OF_2}) for n in (1, 2, 3)]
    adapters = [each[1:3] for each in runs]
    deltas = [acting(*each[:3])["layers"] - drawn(0)["layers"] for each in runs]
    layers = [ties([each[n] for each in deltas], [1, 1, 1], 0.3) for n in range(2)]
    combined = lj.combine_adapters(adapters, LORA, by="ties", density=0.3, rank=2)
    found = acting(runs[0][0], *combined[:2])["layers"] - drawn(0)["layers"]
    for layer, error, got in zip(layers, combined.errors["layers"], found, strict=True):
        u, s, vt = np.linalg.svd(layer)
        np.testing.assert_allclose(got, (u[:, :2] * s[:2]) @ vt[:2], atol=1e-8)
        np.testing.assert_allclose(error, np.linalg.norm(s[2:]) / np.linalg.norm(s), atol=1e-8)


@pytest.mark.usefixtures("x64")
def test_every_matrix_and_seed_drops_entries_of_its_own():
    """Of one full update of two weights of one shape, one of them a stack of two."""
    params = {"stack": jnp.zeros((2, 6, 6)), "w": jnp.zeros((6, 6))}
    lora = variants.make("lora", rank=6)
    adapted = lj.adapt(lambda p, x: x @ p["stack"][0] @ p["stack"][1] @ p["w"], lora)
    begun, frozen = jax.jit(adapted.init)(jax.random.key(0), params, X)
    trainable = noisy(begun, 1)
    kept = []
    for seed in (0, 1):
        options = {"by": "dare", "density": 0.5, "rank": 6, "seed": seed}
        found = lj.combine_adapters([(trainable, frozen)], LORA, **options)
        dropped = by_numpy(adapted.merge)(*found[:2])
        kept += [abs(each) > 1e-9 for each in (*dropped["stack"], dropped["w"])]
    assert all(0.2 < each.mean() < 0.8 for each in kept)
    for one, other in itertools.combinations(kept, 2):
        assert (one != other).mean() > 0.2


def test_the_result_has_the_dtypes_of_training():
    """float32 factors on a bfloat16 base, and the settings of the LoRA that was given."""
    toy = toys.toy(variants.make("lora", rank=2), "bfloat16", targets=("mix/kernel",))
    lora = variants.make("rslora", dropout=0.25)
    combined = lj.combine_adapters([(toy.moved, toy.frozen)] * 2, lora, (0.5, 0.5))
    factors = combined.trainable["adapters"]["mix/kernel"]
    assert {each.dtype for each in factors.values()} == {jnp.dtype("float32")}
    assert combined.trainable["params"]["head_bias"].dtype == jnp.bfloat16
    assert factors["a"].shape[0] == 4
    assert float(combined.frozen.constants["mix/kernel"]["keep"]) == 0.75
    mine, theirs = (
        np.asarray(each["mix"]["kernel"], np.float32)
        for each in (
            by_numpy(toy.adapted.merge)(toy.moved, toy.frozen),
            by_numpy(toy.adapted.merge)(combined.trainable, combined.frozen),
        )
    )
    np.testing.assert_array_equal(mine, theirs)


@pytest.fixture(scope="module")
def plain():
    return [run(n, {"layers": LORA_OF_2}, ["last"]) for n in (1, 2)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": (1.0,)}, "1 weights for 2 adapters"),
        ({"weights": 0.5}, "weights must be a list, a number for each adapter, not 0.5"),
        ({"by": "svd"}, "no way 'svd'"),
        ({"rank": 0}, "rank"),
        ({"by": "ties", "weights": (0.5, 1.5)}, "of 'layers' has no rank of its own"),
        ({"lora": variants.make("dora")}, "not plain LoRA"),
        ({"lora": variants.make("lora_fa")}, "not plain LoRA"),
    ],
)
def test_settings_that_cannot_work(plain, options, said):
    options = {"lora": LORA, "weights": (0.5, 0.5)} | options
    with pytest.raises(ValueError, match=said) as error:
        lj.combine_adapters([each[1:3] for each in plain], **options)
    assert "\n" not in str(error.value)


def test_what_is_no_list_of_pairs_is_refused(plain):
    trainable, frozen = pair = plain[0][1:3]
    for adapters in (pair, trainable, [frozen], [(*pair, {})]):
        with pytest.raises(ValueError, match=r"^adapters must be a list of \(trainable, frozen\),"):
            lj.combine_adapters(adapters, LORA)
    with pytest.raises(ValueError, match=r"expected \(trainable, frozen\), in the order of `init`"):
        lj.combine_adapters([(frozen, trainable)], LORA)


@pytest.mark.parametrize(
    ("changes", "quantize", "path"), [({"bias": 1.0}, None, "bias"), ({}, NF4, "heads")]
)
def test_other_bases_are_refused(plain, changes, quantize, path):
    """Other numbers, or other storage."""
    params = {name: x + changes.get(name, 0.0) for name, x in drawn(0).items()}
    other = run(2, {"layers": LORA_OF_2}, ["last"], quantize, params)
    with pytest.raises(ValueError, match=f"another base: '{path}' has other numbers") as error:
        lj.combine_adapters([plain[0][1:3], other[1:3]], LORA)
    assert str(error.value).endswith("; here is adapter 2")


def test_a_head_of_another_shape_is_kept_or_refused(plain):
    (trainable, frozen), first = plain[1][1:3], plain[0][1:3]
    two = [first, ({**trainable, "params": {"last": jnp.ones((3, 4))}}, frozen)]
    for keep, said in (((), r"shapes .*\[2, 4\], \[3, 4\]"), (["lst"], "nearest: 'last'")):
        with pytest.raises(ValueError, match=said):
            lj.combine_adapters(two, LORA, keep=keep)
    for keep in (["last"], "last"):
        kept = lj.combine_adapters(two, LORA, (2, 3), keep=keep).trainable["params"]["last"]
        np.testing.assert_array_equal(kept, first[0]["params"]["last"])
