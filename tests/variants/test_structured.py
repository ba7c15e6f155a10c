"""Methods whose update has a structure of its own, each against its formula in NumPy.

Products, gradients and starts are the contract's, and equality with PEFT is in
`test_peft.py`.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lora_jax as lj
import variants
from lora_jax.methods.initialization import distinct_places
from lora_jax.peft_format import Peft
from lora_jax.transform.jaxprs import inner
from lora_jax.variant import Base, Factors

KEY = jax.random.key(0)


@functools.partial(jax.jit, static_argnums=0)
def begun(variant, base):
    return variant.init(KEY, base)


def setup(variant, shape, shared=None):
    """A random base, factors away from their start, and the weight that they make."""
    variant.validate(shape)
    random = np.random.RandomState(0)
    base = Base(jnp.asarray(random.randn(*shape)), "io")
    trainable, constants = begun(variant, base)
    constants = constants | (shared or {})
    moved = {name: jnp.asarray(random.randn(*x.shape)) for name, x in trainable.items()}
    factors = Factors(moved, constants)
    weight = jax.jit(variant.weight)(base, factors)
    return np.asarray(base.value), jax.tree.map(np.asarray, factors), np.asarray(weight)


@pytest.mark.parametrize(
    "settings, scale",
    [({}, 1.0), ({"alpha": 3.0}, 3.0), ({"alpha": 8.0, "scale": "alpha/rank"}, 4.0)],
)
def test_hira_multiplies_the_weight_entry_by_entry(settings, scale, x64):
    variant = variants.make("hira", rank=2, **settings)
    w, (each, _), weight = setup(variant, (9, 7))
    expected = w * (1 + scale * each["a"].T @ each["b"])
    np.testing.assert_allclose(weight, expected, atol=1e-12)
    assert np.linalg.matrix_rank(expected - w) == 7  # far beyond its own 2


@pytest.mark.parametrize("scales", ["outputs", "inputs"])
def test_ia3_scales_columns_or_rows(scales, x64):
    w, (each, constants), weight = setup(variants.make("ia3", scales=scales), (7, 5))
    by = each["l"][None] if scales == "outputs" else each["l"][:, None]
    np.testing.assert_allclose(weight, w * by, atol=1e-13)
    assert not constants


@pytest.mark.parametrize(
    "shape, rank", [((8, 5), 4), ((8, 5), 8), ((6, 9), 1), ((7, 5), 3), ((5, 7), 4), ((13, 4), 6)]
)
def test_miss_repeats_one_shard_down_the_inputs(shape, rank, x64):
    """The last copy is cut off where the rank does not divide the inputs."""
    variant = variants.make("miss", rank=rank)
    w, (each, _), weight = setup(variant, shape)
    np.testing.assert_allclose(weight, w + np.resize(each["d"], shape), atol=1e-12)
    assert variant.count(shape) == each["d"].size == rank * shape[1]


@pytest.mark.parametrize("max_rank", [None, 5])
def test_loha_multiplies_two_low_rank_matrices(max_rank, x64):
    variant = variants.make("loha", rank=2, alpha=3.0, max_rank=max_rank)
    w, (each, _), weight = setup(variant, (7, 6))
    a, b, c, d = (each[name][:2] for name in "abcd")  # rows beyond the rank are hidden
    update = 1.5 * (a.T @ b) * (c.T @ d)
    np.testing.assert_allclose(weight, w + update, atol=1e-12)
    assert np.linalg.matrix_rank(update) == 4
    assert variant.count((7, 6)) == 2 * 2 * (7 + 6)


def test_layers_of_a_stack_may_have_lohas_of_other_ranks(x64):
    random = np.random.RandomState(0)
    params, x = {"w": jnp.asarray(random.randn(2, 4, 3))}, jnp.ones((2, 2, 4))
    ranks = {0: 1, 1: 3}
    targets = {lj.layers("w", i): variants.make("loha", rank=r) for i, r in ranks.items()}
    adapted = lj.adapt(lambda p, x: x @ p["w"], targets=targets)
    trainable, frozen = adapted.init(KEY, params, x)
    moved = jax.tree.map(lambda leaf: leaf + random.randn(*leaf.shape), trainable)
    merged = np.asarray(adapted.merge(moved, frozen)["w"])
    for layer, rank in ranks.items():
        a, b, c, d = (np.asarray(moved["adapters"]["w"][name][layer][:rank]) for name in "abcd")
        update = 16 / rank * (a.T @ b) * (c.T @ d)
        np.testing.assert_allclose(merged[layer], params["w"][layer] + update, atol=1e-12)


@pytest.mark.parametrize(
    "shape, settings, kinds",
    [
        ((12, 20), {"rank": 1}, "abc"),  # 3 x 4 and 4 x 5
        ((12, 20), {"rank": 3}, "cd"),
        ((12, 24), {"rank": 3}, "cd"),  # half of the longer side is not below it
        ((12, 10), {"rank": 1, "factor": 6, "decompose_both": True}, ("ca", "cb", "a", "b")),
        ((7, 13), {"rank": 2}, "abc"),  # primes: C is a number
    ],
)
def test_lokr_is_a_kronecker_product(shape, settings, kinds, x64):
    variant = variants.make("lokr", alpha=5.0, **settings)
    w, (each, _), weight = setup(variant, shape)
    assert set(each) == set(kinds)
    c = each["c"] if "c" in each else each["ca"].T @ each["cb"]
    d = each["d"] if "d" in each else each["a"].T @ each["b"]
    update = 5.0 / variant.rank * np.kron(c, d)
    np.testing.assert_allclose(weight, w + update, atol=1e-12)
    assert variant.count(shape) == sum(x.size for x in each.values())


def test_oft_rotates_each_block_of_inputs(x64):
    """Cayley's transform, written out; lengths and angles of the columns stay."""
    variant = variants.make("oft", block_size=3)
    w, (each, constants), weight = setup(variant, (9, 4))
    r = np.zeros((9, 9))
    for block, (q10, q20, q21) in enumerate(each["q"]):
        q = np.array([[0, -q10, -q20], [q10, 0, -q21], [q20, q21, 0]])
        at = slice(3 * block, 3 * block + 3)
        r[at, at] = (np.eye(3) + q) @ np.linalg.inv(np.eye(3) - q)
    np.testing.assert_allclose(weight, r @ w, atol=1e-12)
    np.testing.assert_allclose(weight.T @ weight, w.T @ w, atol=1e-12)
    rows, base = jnp.array([[7, 0], [3, 8]]), Base(jnp.asarray(w), "io")
    taken = variant.take(rows, base, Factors(each, constants))
    np.testing.assert_allclose(taken, (r @ w)[rows], atol=1e-12)
    assert variant.count((9, 4)) == each["q"].size == 9


@pytest.mark.parametrize("terms", [4, 5, 100])
def test_oft_by_a_series(terms, x64):
    """(I + Q) (I + Q + ... + Q^k), written out, up to the most terms that there may be."""
    variant = variants.make("oft", block_size=4, neumann_terms=terms)
    w, (each, _), weight = setup(variant, (4, 3))
    columns, rows = np.triu_indices(4, 1)
    q = np.zeros((4, 4))
    q[rows, columns], q[columns, rows] = each["q"][0], -each["q"][0]
    inverse = sum(np.linalg.matrix_power(q, n) for n in range(terms - 1))
    np.testing.assert_allclose(weight, (np.eye(4) + q) @ inverse @ w, atol=1e-12)


def test_lora_xs_stays_among_the_leading_singular_directions(x64):
    variant = variants.make("lora_xs", rank=2, alpha=3.0)
    w, (each, constants), weight = setup(variant, (7, 5))
    u, s, v = np.linalg.svd(w)
    np.testing.assert_allclose(constants["a"].T @ constants["b"], (u[:, :2] * s[:2]) @ v[:2])
    sign = np.sign((constants["b"] * v[:2]).sum(axis=1))  # of a singular vector: not defined
    np.testing.assert_allclose(constants["b"], sign[:, None] * v[:2], atol=1e-12)
    update = 1.5 * (u[:, :2] * s[:2] * sign) @ each["r"] @ (sign[:, None] * v[:2])
    np.testing.assert_allclose(weight, w + update, atol=1e-12)
    assert variant.count((7, 5)) == each["r"].size == 4


def test_fourierft_adds_a_few_waves(x64):
    """The transform written out as a sum over the coefficients."""
    variant = variants.make("fourierft", frequencies=5, alpha=7.0)
    w, (each, constants), weight = setup(variant, (6, 4))
    i, o = np.ogrid[:6, :4]
    waves = [
        c * np.cos(2 * np.pi * (row * i / 6 + column * o / 4))
        for c, row, column in zip(each["c"], *constants["places"], strict=True)
    ]
    np.testing.assert_allclose(weight, w + 7.0 / 24 * sum(waves), atol=1e-12)


def test_hra_reflects_the_inputs_one_after_the_other(x64):
    variant = variants.make("hra", rank=4)
    w, (each, _), weight = setup(variant, (6, 4))
    reflected = w
    for u in each["u"]:
        reflected = reflected - 2 * np.outer(u, u @ reflected) / (u @ u)
    np.testing.assert_allclose(weight, reflected, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
def test_randlora_is_a_sum_of_scaled_random_products(shape, x64):
    variant = variants.make("randlora", rank=3, alpha=6.0)
    shared = variant.init_shared(KEY, [(5, 9), shape], jnp.float64)  # beside a larger matrix
    w, (each, constants), weight = setup(variant, shape, shared)
    update = 0
    for term in range(2):
        scaled = np.diag(each["lambda"][term]) @ constants["random_a"][:, :4]
        scaled = scaled @ np.diag(each["gamma"][term])
        update = update + scaled.T @ constants["random_b"][term, :, :7]
    np.testing.assert_allclose(weight, w + 2 * (update if shape[0] == 4 else update.T), atol=1e-12)
    assert np.linalg.matrix_rank(update) == 4
    assert variant.count(shape) == each["lambda"].size + each["gamma"].size == 2 * (3 + 4)


def test_shira_changes_the_chosen_entries_alone(x64):
    variant = variants.make("shira", rank=1)
    w, (each, constants), weight = setup(variant, (6, 5))
    expected = w.copy()
    for value, row, column in zip(each["v"], *constants["places"], strict=True):
        expected[row, column] += value
    np.testing.assert_allclose(weight, expected, atol=1e-14)
    assert (weight != w).sum() == variant.count((6, 5)) == 11


@pytest.mark.parametrize("shape, count", [((6, 5), 11), ((6, 5), 30), ((3, 1), 1), ((70, 90), 41)])
def test_places_are_distinct_and_inside(shape, count):
    keys = jax.random.split(KEY, 20)
    places = jax.jit(jax.vmap(lambda key: distinct_places(key, shape, count)))(keys)
    rows, columns = np.moveaxis(np.asarray(places), 1, 0)
    flat = rows * shape[1] + columns
    assert (np.diff(flat, axis=1) > 0).all() and flat.min() >= 0 and flat.max() < np.prod(shape)
    assert (columns < shape[1]).all()
    if count in (11, 41):
        assert (np.ptp(flat, axis=0) > 0).all()  # each is drawn


def test_delora_fixes_the_length_of_each_part(x64):
    variant = variants.make("delora", rank=2, strength=3.0)
    w, (each, constants), weight = setup(variant, (6, 4))
    directions = [each[name] / np.linalg.norm(each[name], axis=1)[:, None] for name in "ab"]
    norms = np.linalg.norm(w, axis=1)
    update = each["lambda"] / 2 * norms[:, None] * (directions[0].T @ directions[1])
    np.testing.assert_allclose(weight, w + update, atol=1e-12)
    short = Factors({**each, "b": [[1e-5], [2.0]] * directions[1]}, constants)
    shorter = directions[0].T @ ([[0.1], [1.0]] * directions[1])  # a norm counts as 1e-4 at least
    weight = jax.jit(variant.weight)(Base(jnp.asarray(w), "io"), short)
    update = each["lambda"] / 2 * norms[:, None] * shorter
    np.testing.assert_allclose(weight, w + update, atol=1e-12)
    begun = jax.jit(variant.init)(KEY, Base(jnp.asarray(w), "io")).trainable
    np.testing.assert_array_equal(begun["lambda"], [3.0])


@pytest.mark.parametrize(
    "settings", [{"scale": "alpha/sqrt(rank)"}, {"max_rank": 6}, {"initialization": "pissa"}]
)
def test_gralora_is_a_lora_of_each_block(settings, x64):
    variant = variants.make("gralora", rank=2, alpha=3.0, blocks=2, **settings)
    w, (each, constants), weight = setup(variant, (6, 4))
    scale = 3 / 2**0.5 if "scale" in settings else 3 / 2

    def updates(a, b):
        """Those of the blocks; of `max_rank` rows, the first of each block count."""
        a, b = (x.reshape(2, -1, 2, x.shape[1] // 2)[:, 0] for x in (a, b))  # (j, i, 3), (i, j, 2)
        return np.block([[np.outer(a[j, i], b[i, j]) for j in range(2)] for i in range(2)])

    update = updates(each["a"], each["b"])
    if "a0" in constants:
        start = updates(constants["a0"], constants["b0"])
        for block, from_w in zip(*(corners(x) for x in (scale * start, w)), strict=True):
            u, s, v = np.linalg.svd(from_w)
            np.testing.assert_allclose(block, s[0] * np.outer(u[:, 0], v[0]), atol=1e-12)
        update = update - start
    np.testing.assert_allclose(weight, w + scale * update, atol=1e-12)
    assert variant.count((6, 4)) == 2 * (6 + 4)


@pytest.mark.parametrize("shape, size", [((6, 9), 3), ((8, 4), 2)])
def test_c3a_is_a_grid_of_circulant_matrices(shape, size, x64):
    variant = variants.make("c3a", block_size=3)
    w, (each, constants), weight = setup(variant, shape)
    rows, base = jnp.arange(shape[0], dtype=jnp.uint32), Base(jnp.asarray(w), "io")
    np.testing.assert_allclose(
        variant.take(rows, base, Factors(each, constants)), weight, atol=1e-12
    )
    update = np.zeros(shape)
    for (m, n, turn), value in np.ndenumerate(each["w"]):
        columns = np.arange(size)
        update[n * size + (columns + turn) % size, m * size + columns] = value
    np.testing.assert_allclose(weight, w + update / shape[0], atol=1e-12)
    assert variant.count(shape) == each["w"].size == shape[0] * shape[1] // size


@pytest.mark.parametrize("per_pair", [1, 2, 4])
def test_road_turns_pairs_of_outputs(per_pair, x64):
    variant = variants.make("road", per_pair=per_pair, group_size=6, biases=True)
    w, (each, _), weight = setup(variant, (3, 8))  # the largest even divisor of 8 is 4
    turn = np.zeros((8, 8))
    own = {1: [0, 0, 0, 0], 2: [0, 1, 0, 1], 4: [0, 1, 2, 3]}[per_pair]
    for group, i in np.ndindex(2, 2):
        at = [2 * (per_pair * group + n) + i for n in own]
        (a1, a2, a3, a4), (t1, t2, t3, t4) = each["alpha"][at], each["theta"][at]
        first, second = 4 * group + i, 4 * group + 2 + i
        turn[first, [first, second]] = a1 * np.cos(t1), -a3 * np.sin(t3)
        turn[second, [first, second]] = a4 * np.sin(t4), a2 * np.cos(t2)
    np.testing.assert_allclose(weight, w @ turn.T, atol=1e-12)
    bias = variant.bias(jnp.arange(8.0), Factors(each, {}))
    np.testing.assert_allclose(bias, turn @ np.arange(8), atol=1e-12)
    assert variant.count((3, 8)) == sum(x.size for x in each.values())


def test_boft_turns_blocks_whose_halves_lie_apart(x64):
    variant = variants.make("boft", block_size=4, butterfly_factors=3)
    w, (each, _), weight = setup(variant, (16, 3))
    turned, (columns, rows) = w, np.triu_indices(4, 1)
    for level, angles in enumerate(each["q"]):
        firsts = [n for n in range(8) if not n & 2**level]  # of the 8 runs of two inputs
        r = np.zeros((16, 16))
        for first, entries in zip(firsts, angles, strict=True):
            second, q = first + 2**level, np.zeros((4, 4))
            q[rows, columns], q[columns, rows] = entries, -entries
            at = [2 * first, 2 * first + 1, 2 * second, 2 * second + 1]
            r[np.ix_(at, at)] = (np.eye(4) + q) @ np.linalg.inv(np.eye(4) - q)
        turned = r @ turned
    np.testing.assert_allclose(weight, turned * each["s"], atol=1e-12)
    np.testing.assert_allclose(turned.T @ turned, w.T @ w, atol=1e-12)
    assert variant.count((16, 3)) == sum(x.size for x in each.values())


def test_vblora_mixes_the_vectors_with_the_largest_logits(x64):
    """Shorter sub-vectors, where the sides share no longer divisor, are the vectors' beginnings."""
    variant = variants.make("vblora", rank=2, num_vectors=5, vector_length=4, topk=2)
    random = np.random.RandomState(0)
    bank, w = random.randn(5, 4), random.randn(6, 9)
    a, b = random.randn(2, 2, 5), random.randn(2, 3, 5)  # sub-vectors of 3

    def rows(logits):
        parts = []
        for each in logits.reshape(-1, 5):
            chosen = np.argsort(each)[-2:]
            weights = np.exp(each[chosen]) / np.exp(each[chosen]).sum()
            parts.append(weights @ bank[chosen, :3])
        return np.concatenate(parts).reshape(2, -1)

    got = variant.weight(Base(w, "io"), Factors({"a": a, "b": b, "bank": bank}, {}))
    np.testing.assert_allclose(got, w + rows(a).T @ rows(b), rtol=1e-12)
    shared = jax.eval_shape(lambda key: variant.init_shared(key, [(6, 9), (9, 12)], float), KEY)
    assert shared["bank"].shape == (5, 3)
    assert variant.count((6, 9)) == a.size + b.size


def test_vblora_starts_as_pefts_does():
    """The bank is uniform up to 0.02, and logits are normal with a deviation of 0.1."""
    variant = variants.make("vblora")
    bank = np.asarray(variant.init_shared(KEY, [(256, 512)], np.float32)["bank"])
    assert bank.shape == (256, 256) and 0.0199 < np.abs(bank).max() <= 0.02
    assert abs(bank.std() * 12**0.5 / 0.04 - 1) < 0.01
    factors = variant.init(KEY, Base(np.zeros((256, 512), np.float32), "io")).trainable
    assert (factors["a"].shape, factors["b"].shape) == ((4, 1, 256), (4, 2, 256))
    for logits in map(np.asarray, factors.values()):
        assert abs(logits.std() / 0.1 - 1) < 5 / (2 * logits.size) ** 0.5


def corners(x):
    return [part for half in np.split(x, 2) for part in np.split(half, 2, axis=1)]


RANK = {"rank": 2}
SMALL = {
    **{"gralora": RANK, "loha": RANK, "lokr": RANK, "lora_xs": RANK, "hra": RANK, "delora": RANK},
    **{
        "boft": {"block_size": 4},
        "oft": {"block_size": 4},
        "c3a": {"block_size": 8},
        "road": {"per_pair": 4},
    },
}


@pytest.mark.parametrize("name", SMALL)
def test_a_step_forms_nothing_as_large_as_the_matrix(name):
    variant = variants.make(name, **SMALL[name])
    shape = inputs, outputs = 96, 80
    base = Base(jax.ShapeDtypeStruct(shape, jnp.float32), "io")
    trainable, constants = jax.eval_shape(variant.init, KEY, base)
    x = jax.ShapeDtypeStruct((2, inputs), jnp.float32)

    def loss(trainable, constants, base, x):
        factors = Factors(trainable, constants)
        y = variant.dot(x, base, factors, dropout_key=KEY)
        return (y**2).sum() + (variant.dot_t(y, base, factors) ** 2).sum()

    traced = jax.make_jaxpr(jax.grad(loss))(trainable, constants, base, x)
    made = dict(sizes(traced.jaxpr))
    assert max(made.values()) < inputs * outputs, made


def sizes(jaxpr):
    """The name of each operation, inner ones too, and the size of the largest array it makes."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name, max(var.aval.size for var in eqn.outvars)
        for each in eqn.params.values():
            if hasattr(each, "eqns") or hasattr(each, "jaxpr"):
                yield from sizes(inner(each)[0])


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("fourierft", {"frequencies": 13}, "13 frequencies exceed the entries of (4, 3)"),
        ("shira", {"rank": 2}, "rank 2 means 14 entries, more than (4, 3) has"),
        ("lora_xs", {"rank": 4}, "rank 4 exceeds min(in, out) = 3 of (4, 3)"),
        ("c3a", {"block_size": 9}, "no block of 2 to 9 divides both sides of (4, 3)"),
        (
            "boft",
            {"butterfly_factors": 3},
            "the 4 inputs of (4, 3) are not a multiple of 2**3, which 3 butterfly factors need",
        ),
        ("road", {}, "the 3 outputs of (4, 3) cannot be paired"),
        ("gralora", {"rank": 2}, "2 blocks do not divide both sides of (4, 3)"),
        ("miss", {"rank": 5}, "rank 5 exceeds the 4 inputs of (4, 3)"),
        ("vblora", {}, "no length of 2 to 256 divides both sides of (4, 3)"),
        ("trainable_tokens", {"tokens": (3, -1)}, "tokens (3, -1) name a row of (4, 3) twice"),
        ("trainable_tokens", {"tokens": (0, -5)}, "token -5 is none of the 4 rows of (4, 3)"),
        ("trainable_tokens", {"tokens": (4,)}, "token 4 is none of the 4 rows of (4, 3)"),
    ],
)
def test_settings_that_a_matrix_cannot_have_are_named(name, settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        variants.make(name, **settings).validate((4, 3))


SIZES = {"oft": "block_size", "boft": "block_size", "road": "group_size", "vblora": "vector_length"}


@pytest.mark.parametrize("name", SIZES)
def test_a_size_without_bound_is_the_dimension_at_once(name):
    key, base = jax.random.key(0), Base(jnp.ones((8, 8)), "io")
    huge, whole = (variants.make(name, **{SIZES[name]: n}) for n in (10**18, 8))
    huge.validate(base.shape)
    started = [jax.eval_shape(lambda v=v: v.init(key, base)) for v in (huge, whole)]
    assert started[0] == started[1] and huge.count(base.shape) == whole.count(base.shape)
    x = jnp.ones((2, 8))
    if name != "vblora":  # whose bank is apart
        assert huge.dot(x, base, huge.init(key, base)).shape == (2, 8)


def test_many_butterfly_factors_are_refused_at_once():
    with pytest.raises(ValueError, match="1000000000000 butterfly factors need"):
        variants.make("boft", butterfly_factors=10**12).validate((8, 8))


def test_places_of_a_longer_spectrum_than_the_files_are_not_drawn():
    variant, base = variants.make("fourierft", frequencies=10**12), Base(jnp.ones((8, 8)), "io")
    peft = Peft({}, {"fourierft_spectrum": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="n_frequency is 1000000000000, the file has"):
        variant.factors_from_peft(base, peft, Factors({}, {}))


def test_places_that_pytorch_draws_in_another_way_are_not_guessed():
    """From (2^32 - 1) / 20 entries on, `randperm` is another shuffle."""
    variant = variants.make("fourierft", frequencies=3)
    base = Base(np.broadcast_to(np.float32(1), (8192, 28672)), "io")
    peft = Peft({}, {"fourierft_spectrum": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"matrix of \(8192, 28672\) are not known"):
        variant.factors_from_peft(base, peft, Factors({}, {}))
    places = {"places": np.zeros((2, 3), int), "scale": np.float32(1)}
    assert variant.to_peft(base, Factors({"c": np.zeros(3)}, places)) is None


def test_a_block_is_the_largest_divisor_of_the_inputs():
    variant = variants.make("oft", block_size=4)
    shapes = {n: variant.init(KEY, Base(jnp.ones((n, 2)), "io")).trainable["q"].shape
              for n in (8, 6, 3)}  # fmt: skip
    assert shapes == {8: (2, 6), 6: (2, 3), 3: (1, 3)}
    said = "'w': no block of 2 to 4 inputs divides the 7 of (7, 3)"
    adapted = lj.adapt(lambda p, x: x @ p["w"], variant, "w")
    with pytest.raises(ValueError, match=re.escape(said)):
        adapted.init(KEY, {"w": jnp.ones((7, 3))}, jnp.ones((2, 7)))
