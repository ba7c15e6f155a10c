"""Which weights and layers are adapted, by what, how many parameters that is; and bad targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lora_jax as lj
from lora_jax.transform.target_patterns import SomeLayers
from lora_jax.variant import Base, Variant
from variants.head_only import HeadOnly
from variants.lora import LoRA

pytestmark = pytest.mark.usefixtures("x64")

L, D, F = 5, 4, 6


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def stacked(p, x):
    def layer(x, w):
        return x + jnp.tanh(x @ w["up"]) @ w["down"], None

    return lax.scan(layer, x, p["layers"])[0] @ p["head"]


def unrolled(p, x):
    for number in sorted(p["layers"]):
        w = p["layers"][number]
        x = x + jnp.tanh(x @ w["up"]) @ w["down"]
    return x @ p["head"]


STACKED = {
    "layers": {"up": normal(L, D, F), "down": normal(L, F, D, seed=1)},
    "head": normal(D, 3, seed=2),
}
UNROLLED = {
    "layers": {i: {n: w[i] for n, w in STACKED["layers"].items()} for i in range(L)},
    "head": STACKED["head"],
}
X = normal(2, D, seed=3)
KEY = jax.random.key(0)


def init(forward, params, targets, variant=None, **options):
    adapted = lj.adapt(forward, variant, targets, **options)
    return adapted, *jax.jit(adapted.init)(KEY, params, X)


def random_like(tree, seed=4):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(scale=0.3, size=leaf.shape)), tree)


@pytest.mark.parametrize("name", ["block_{}/mlp/0", "{}/mlp/1", "blocks/{}/mlp/0", "up{}/down9"])
def test_a_layer_is_the_first_number_in_the_path(name):
    paths = [name.format(number) for number in range(3)]
    params = {path: normal(D, D, seed=number) for number, path in enumerate(paths)}

    def forward(p, x):
        for path in paths:
            x = x @ p[path]
        return x

    _, trainable, _ = init(forward, params, lj.layers(".*", slice(1, 3)), LoRA(rank=1))
    assert [*trainable["adapters"]] == paths[1:]


PER_LAYER = [LoRA(rank=1, alpha=3.0), None, LoRA(rank=4, alpha=8.0), LoRA(rank=2, alpha=1.0), None]


@pytest.mark.parametrize("active", [True, False])
def test_matrices_that_are_left_out_are_those_of_the_base(active):
    lora, base = LoRA(rank=2), Base(jnp.asarray(np.random.randn(4, 5)), "io")
    factors = random_like(lora.init(KEY, base))
    some = factors._replace(constants={**factors.constants, "active": jnp.asarray(active)})
    for name, given in {"dot": np.ones((3, 4)), "dot_t": np.ones((3, 5)), "take": [0, 3]}.items():
        given = jnp.asarray(given)
        got = getattr(SomeLayers(lora), name)(given, base, some)
        wanted = getattr(lora, name)(given, base, factors) if active else getattr(base, name)(given)
        np.testing.assert_array_equal(got, wanted)


def test_layers_of_a_stack_that_differ_equal_the_same_layers_unrolled():
    """Unequal ranks and alphas, layers left out: the outputs and gradients of separate layers."""
    scale = "alpha/sqrt(rank)"
    chosen = [v and LoRA(rank=v.rank, alpha=v.alpha, scale=scale) for v in PER_LAYER]
    down = LoRA(rank=2, scale=scale)
    rules = {lj.layers("up", i): v for i, v in enumerate(chosen) if v}
    together, mine, frozen = init(stacked, STACKED, {**rules, "down": down})
    apart, theirs, frozen_apart = init(unrolled, UNROLLED, {**rules, "down": down})
    assert set(theirs["adapters"]) == {
        *(f"layers/{i}/up" for i, v in enumerate(chosen) if v),
        *(f"layers/{i}/down" for i in range(L)),
    }

    theirs = random_like(theirs)
    # Rows beyond a layer's rank are not zero: they must not count.
    mine = jax.tree.map(np.array, random_like(mine, seed=5))
    for path, factors in theirs["adapters"].items():
        _, i, name = path.split("/")
        for letter, factor in factors.items():
            stack = mine["adapters"][f"layers/{name}"]
            rank = factor.shape[0]
            stack[letter][int(i), :rank] = factor

    def loss(adapted, frozen):
        return lambda theta: jnp.sum(jnp.sin(adapted.apply(theta, frozen, X)))

    value, gradient = jax.jit(jax.value_and_grad(loss(together, frozen)))(mine)
    expected, apart_gradient = jax.jit(jax.value_and_grad(loss(apart, frozen_apart)))(theirs)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    remaining = jax.tree.map(np.array, gradient["adapters"])
    for path, factors in apart_gradient["adapters"].items():
        _, i, name = path.split("/")
        for letter, factor in factors.items():
            rows = remaining[f"layers/{name}"][letter][int(i)]
            np.testing.assert_allclose(rows[: factor.shape[0]], factor, rtol=1e-9, atol=1e-12)
            rows[: factor.shape[0]] = 0
    for leaf in jax.tree.leaves(remaining):  # no gradient where nothing is trained
        np.testing.assert_array_equal(leaf, 0)

    merged, merged_apart = jax.tree.map(
        np.asarray,
        (jax.jit(together.merge)(mine, frozen), jax.jit(apart.merge)(theirs, frozen_apart)),
    )
    for i in range(L):
        for name in ("up", "down"):
            np.testing.assert_allclose(
                merged["layers"][name][i], merged_apart["layers"][i][name], rtol=1e-12
            )
    np.testing.assert_array_equal(merged["layers"]["up"][1], STACKED["layers"]["up"][1])
    counted = lj.summary(mine, frozen)
    assert counted.trained == lj.summary(theirs, frozen_apart).trained
    assert counted.trained == sum(v.rank for v in chosen if v) * (D + F) + L * 2 * (F + D)


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (slice(None), range(L)),
        (slice(-2, None), [3, 4]),
        (slice(None, None, 2), [0, 2, 4]),
        (slice(3, 99), [3, 4]),
        (-1, [4]),
    ],
)
def test_layers(which, expected):
    """The same layers of a stack and of a list, and their parameters counted."""
    variant = LoRA(rank=2)
    _, trainable, frozen = init(stacked, STACKED, lj.layers("up", which), variant)
    separately = lj.adapt(unrolled, variant, lj.layers("up", which))
    listed, listed_frozen = jax.eval_shape(separately.init, KEY, UNROLLED, X)
    assert list(listed["adapters"]) == [f"layers/{i}/up" for i in expected]
    for counted in (lj.summary(trainable, frozen), lj.summary(listed, listed_frozen)):
        assert counted.trained == len(expected) * 2 * (D + F)
        assert counted.total == L * 2 * D * F + D * 3
    theta = random_like(trainable)
    adapted = lj.adapt(stacked, variant, lj.layers("up", which))
    merged = np.asarray(jax.jit(adapted.merge)(theta, frozen)["layers"]["up"])
    changed = merged != STACKED["layers"]["up"]
    assert [i for i in range(L) if changed[i].any()] == list(expected)


def test_the_first_pattern_that_matches_decides():
    rules = {"head": LoRA(rank=1), "up": None, "all-linear": LoRA(rank=2)}
    _, trainable, frozen = init(stacked, STACKED, rules)
    assert lj.summary(trainable, frozen).trained == D + 3 + L * 2 * (F + D)  # all layers
    ranks = {path: f["a"].shape[-2] for path, f in trainable["adapters"].items()}
    assert ranks == {"head": 1, "layers/down": 2}


def test_targets_may_be_one_pattern_or_several():
    lora = LoRA(rank=1)
    for targets in ("head", ["head"], ("head",), {"head": lora}):
        variant = None if isinstance(targets, dict) else lora
        _, trainable, _ = init(stacked, STACKED, targets, variant)
        assert list(trainable["adapters"]) == ["head"]


def test_also_train():
    adapted, trainable, frozen = init(stacked, STACKED, "up", LoRA(rank=2), also_train="head")
    assert list(trainable["params"]) == ["head"]
    assert "head" not in frozen.base and "layers/up" in frozen.base
    counted = lj.summary(trainable, frozen)
    assert counted.trained == L * 2 * (D + F) + D * 3
    assert counted.total == L * 2 * D * F + D * 3
    gradient = jax.jit(jax.grad(lambda t: adapted.apply(t, frozen, X).sum()))(trainable)
    assert np.abs(gradient["params"]["head"]).min() > 0
    moved = {**trainable, "params": {"head": STACKED["head"] + 1}}
    np.testing.assert_array_equal(adapted.merge(moved, frozen)["head"], STACKED["head"] + 1)
    # What is trained in full is not adapted, where "all-linear" would:
    _, trainable, _ = init(stacked, STACKED, "all-linear", LoRA(rank=2), also_train=["head"])
    assert set(trainable["adapters"]) == {"layers/up", "layers/down"}


def test_the_summary_is_readable():
    _, trainable, frozen = init(
        stacked,
        STACKED,
        {lj.layers("up", 0): LoRA(rank=1), lj.layers("up", 2): LoRA(rank=3), "down": LoRA(rank=2)},
        also_train="head",
    )
    lines = str(lj.summary(trainable, frozen)).splitlines()
    rows = {line.split()[0]: line for line in lines[2:-1]}
    assert list(rows) == ["head", "layers/down", "layers/up"]
    assert "1/-/3" in rows["layers/up"].replace(" ", "") or "1, -, 3" in rows["layers/up"]
    trained = 4 * (D + F) + L * 2 * (D + F) + 3 * D
    total = L * 2 * D * F + 3 * D
    share = f"({100 * trained / total:.3f}%)"
    assert lines[-1] == f"{trained:,} of {total:,} parameters are trained {share}"


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        ("upp", {}, r"pattern 'upp' matches no weight; nearest: 'layers/up'"),
        (["up", "layer/down"], {}, r"'layer/down' matches no weight; nearest: 'layers/down'"),
        (
            {"layers/up": LoRA(rank=1), "up": LoRA(rank=2)},
            {},
            "'up' selects only what other patterns have taken",
        ),
        ("up", {"also_train": "layers/up"}, r"'layers/up' is both a target and in also_train"),
        ("up", {"also_train": "haed"}, r"'haed' matches no parameter; nearest: 'head'"),
        (lj.layers("up", 5), {}, r"layers\('up', 5\): there are 5 layers"),
        (lj.layers("up", -6), {}, r"layers\('up', -6\): there are 5 layers"),
        (lj.layers("up", slice(7, 9)), {}, r"layers\('up', \[7:9.*\]\) selects no layer"),
        (
            lj.layers("head", 0),
            {},
            r"'head' is neither a stack of layers nor .*leave it out: {'head': None, layers\(",
        ),
        ({"up": LoRA(rank=2)}, {"variant": LoRA()}, "leave out variant, or add it to the mapping"),
        ("up", {"quantize": lj.NF4()}, r"quantize maps patterns to storages, .*, not NF4\("),
        ("up", {"quantize": "nf4"}, r"quantize maps patterns to storages, .*, not 'nf4'"),
        ("up", {"also_train": None}, r"also_train takes patterns .*, not None"),
        ("up", {"also_train": lj.layers("up", 0)}, r"also_train takes patterns .*, not Layers"),
        ("up", {"also_train": [lj.layers("up", 0)]}, r"also_train takes patterns .*, not \[Lay"),
        (lj.layers("uq", 0), {}, r"'uq' matches no weight; nearest: 'layers/up'"),
        ("(", {}, r"'\(' is not a regular expression"),
        ("(\nup", {}, r"'\(\\nup' is not a regular expression"),
        ("u\nup", {}, r"'u\\nup' matches no weight; nearest: 'layers/up'"),
        ("all_linear", {}, r"'all_linear' matches no weight; nearest: 'all-linear'"),
        ([], {}, r"targets is empty; name weights, or leave it out for 'all-linear'"),
        ({}, {}, r"targets is empty"),
        (
            {"up": None},
            {},
            r"nothing would train: all targets map to None; name parameters in also_train",
        ),
        (None, {}, r"targets must be patterns, or map patterns to variants, not None"),
        (len, {}, r"targets must be patterns.*, not <built-in function len>"),
        (["up", 3], {}, r"targets: 3 is not a pattern"),
        ("up", {"variant": None}, "needs a variant"),
        ("up", {"variant": "lora"}, r"'lora' is not a variant; make one: variants\.make"),
        (
            {lj.layers("up", 0): LoRA(rank=1), "up": LoRA(rank=1, dropout=0.5)},
            {},
            "'layers/up': layers of one stacked weight cannot mix",
        ),
        (
            "all-linear",
            {"variant": LoRA(rank=4, initialization="pissa")},
            r"'head': .*rank = 4 directions.*; change the setting, or leave 'head' out of the",
        ),
    ],
)
def test_bad_targets(targets, options, message):
    options = {"variant": None if isinstance(targets, dict) else LoRA(rank=2), **options}
    with pytest.raises(ValueError, match=message) as error:
        init(stacked, STACKED, targets, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("which", [[0, 1], range(2), None, 1.0, slice(0, 1.5)])
def test_layers_are_a_number_or_a_slice(which):
    with pytest.raises(ValueError, match=r"layers\('up', \.\.\.\) takes an integer or a slice"):
        lj.layers("up", which)


def test_layers_pass_over_what_earlier_patterns_have_taken():
    """A head without a number may be left out; numbers of what is taken still count."""
    lora = LoRA(rank=1)
    rules = {"head": None, lj.layers("all-linear", slice(0, 1)): lora}
    for forward, params, paths in (
        (stacked, STACKED, {"layers/up", "layers/down"}),
        (unrolled, UNROLLED, {"layers/0/up", "layers/0/down"}),
    ):
        _, trainable, _ = init(forward, params, rules)
        assert set(trainable["adapters"]) == paths
    rules = {"head": None, "4/up": None, lj.layers("all-linear", -1): lora}
    _, trainable, _ = init(unrolled, UNROLLED, rules)
    assert set(trainable["adapters"]) == {"layers/4/down"}


@pytest.mark.parametrize("key", [0, None, np.zeros(2)])
def test_what_is_no_key_is_refused(key):
    adapted = lj.adapt(stacked, LoRA(rank=2), "up")
    with pytest.raises(ValueError, match=r"a random key is needed, such as jax\.random\.key\(0\)"):
        adapted.init(key, STACKED, X)


def test_a_variant_that_lacks_something_is_named():
    class Lacking(Variant):
        def init(self, key, base):
            return {"a": jnp.ones(3)}

    params = {"w": normal(D, D)}
    with pytest.raises(ValueError, match=r"'w': Lacking\.init must give Factors\(tr.*\), not dict"):
        lj.adapt(lambda p, x: x @ p["w"], Lacking()).init(KEY, params, X)
    for name, given in (("init", (KEY, None)), ("weight", (None, None)), ("count", ((2, 3),))):
        with pytest.raises(NotImplementedError, match=f"^Variant must define {name}$"):
            getattr(Variant(), name)(*given)


def test_integers_cannot_be_trained():
    def forward(p, x):
        return x @ p["w"] * p["n"].astype(float)

    adapted = lj.adapt(forward, LoRA(rank=1), "w", also_train="n")
    with pytest.raises(ValueError, match="'n' cannot be trained: its dtype is int"):
        adapted.init(KEY, {"w": normal(D, D), "n": jnp.array(3)}, X)


@pytest.mark.parametrize("dtype", ["int8", "bool", "complex128"])
def test_only_real_weights_are_adapted(dtype):
    def forward(p, x):
        common = jnp.complex128 if dtype == "complex128" else jnp.float64
        return (x.astype(common) @ p["q"].astype(common)).real @ p["v"]

    params = {"q": normal(D, D).astype(dtype), "v": normal(D, D)}
    _, trainable, _ = init(forward, params, "all-linear", LoRA(rank=2))
    assert list(trainable["adapters"]) == ["v"]
    with pytest.raises(ValueError, match=f"'q' cannot be adapted: its dtype is {dtype}"):
        init(forward, params, "q", LoRA(rank=2))


@pytest.mark.parametrize(
    "forward",
    [
        lambda p, x: x @ jnp.concatenate([p["q"], p["k"]], axis=1),
        lambda p, x: jax.lax.scan(lambda c, w: (c @ w, None), x, jnp.stack([p["q"], p["k"]]))[0],
        lambda p, x: x @ (p["q"] + p["k"]),
        lambda p, x: x @ (p["q"] * jnp.triu(jnp.ones((4, 4)))) @ (p["k"] / 2.0),
        lambda p, x: x @ jnp.linalg.inv(p["q"]) + x @ p["k"],
        lambda p, x: x @ jax.lax.cond(x.sum() > 0, lambda: p["q"], lambda: p["k"]),
    ],
    ids=["concatenate", "stack", "sum", "mask", "inverse", "cond"],
)
def test_weights_that_are_mixed_into_others_are_merged_and_right(x64, forward):
    params, x = {"q": normal(4, 4), "k": normal(4, 4, seed=1)}, normal(3, 4, seed=2)
    adapted = lj.adapt(forward, LoRA(rank=2), ["q", "k"])

    @jax.jit
    def outputs(params, x):
        trainable, frozen = adapted.init(KEY, params, x)
        moved = jax.tree.map(jnp.add, trainable, random_like(trainable))
        merged = adapted.merge(moved, frozen)
        return adapted.apply(moved, frozen, x), forward(merged, x), forward(params, x)

    ours, theirs, plain = map(np.asarray, outputs(params, x))
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    assert np.abs(ours - plain).max() > 1e-3


def test_methods_that_only_choose_leave_other_layers_to_their_adapters():
    params = {"w": np.ones((3, 4, 4))}
    targets = {lj.layers("w", 0): HeadOnly(), "w": LoRA(rank=2)}

    def forward(p, x):
        return lax.scan(lambda c, w: (c @ w, None), x, p["w"])[0]

    adapted = lj.adapt(forward, targets=targets)
    trainable, frozen = jax.eval_shape(adapted.init, KEY, params, np.ones((1, 4)))
    assert lj.summary(trainable, frozen).trained == 2 * 2 * (4 + 4)
