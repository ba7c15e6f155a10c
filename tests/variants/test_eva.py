"""EVA against principal components by NumPy, and its division of ranks against a plain count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo.check as check
from jax import lax

import lora_jax as lj
import variants
from lora_jax.base import SeenInputs
from lora_jax.methods import initialization
from lora_jax.transform.adapt import init_shapes

KEY = jax.random.key(0)
WIDTH = 6


def net(params, x):
    """The inputs of `flat` vary in one direction, and those of `out` hardly in two."""
    x = lax.scan(lambda x, w: (x @ w, None), x, params["stack"])[0]
    line = jnp.outer(x[:, 0], jnp.ones(WIDTH)) @ params["flat"]
    return (x + line) @ params["out"]


def inputs_of(params, x):
    found = {("stack", 0): x, ("stack", 1): x @ params["stack"][0]}
    x = x @ params["stack"][0] @ params["stack"][1]
    line = np.outer(x[:, 0], np.ones(WIDTH))
    return found | {("flat", None): line, ("out", None): x + line @ params["flat"]}


@pytest.fixture(scope="module")
def problem():
    jax.config.update("jax_enable_x64", True)
    random = np.random.RandomState(2)
    params = {
        "stack": random.randn(2, WIDTH, WIDTH),
        "flat": random.randn(WIDTH, WIDTH),
        "out": random.randn(WIDTH, WIDTH),
    }
    batches = [(random.randn(20, WIDTH) * 1.5 ** np.arange(WIDTH)[None],) for _ in range(2)]
    yield params, batches
    jax.config.update("jax_enable_x64", False)


def components(problem):
    """The shares of the variance and the components of each matrix's inputs, by NumPy."""
    params, batches = problem
    found = {}
    for name, x in inputs_of(params, np.concatenate([x for (x,) in batches])).items():
        _, s, v = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
        found[name] = s**2 / np.sum(s**2), v
    return found


def started(problem, rank=2, **settings):
    params, batches = problem
    adapted = lj.adapt(net, variants.make("eva", rank=rank, alpha=2.0 * rank, **settings))
    return adapted, *adapted.init(KEY, params, batches[0][0], batches=batches)


def test_a_is_the_components_and_b_is_zero(problem):
    _, trainable, _ = started(problem, rank=3, initialization="eva")
    for (name, index), (_, v) in components(problem).items():
        if name == "flat":
            continue  # whose inputs have one direction only
        each = trainable["adapters"][name]
        a, b = (np.asarray(each[n] if index is None else each[n][index]) for n in "ab")
        np.testing.assert_allclose(np.abs(a @ v.T), np.eye(WIDTH)[:3], atol=1e-7)
        assert a.shape == (3, WIDTH) and not b.any()


def test_ranks_are_the_greatest_shares_of_one_budget(problem):
    params, batches = problem
    adapted, trainable, frozen = started(problem)  # rho = 2: at most rank 4
    shares = components(problem)
    pairs = sorted(((s, name) for name, (all_s, _) in shares.items() for s in all_s[:4]))[::-1]
    chosen = [name for _, name in pairs[: 2 * len(shares)]]
    wanted = {name: chosen.count(name) for name in shares}
    assert wanted["flat", None] == 1 and max(wanted.values()) == 4

    ranks = lj.ranks(trainable, frozen)
    got = {
        name: int(ranks[name[0]] if name[1] is None else ranks[name[0]][name[1]]) for name in shares
    }
    assert got == wanted and sum(got.values()) == 8
    assert lj.summary(trainable, frozen).trained == 8 * 2 * WIDTH
    for each in frozen.constants.values():  # the scale is kept: alpha follows the rank
        np.testing.assert_allclose(each["scale"], 2.0, rtol=1e-12)
    x = batches[0][0]
    check.assert_close(adapted.apply(trainable, frozen, x), net(params, jnp.asarray(x)), 1e-12)


def test_some_layers_of_a_stack_share_the_budget(problem):
    params, batches = problem
    variant, x = variants.make("eva", rank=2), batches[0][0]
    adapted = lj.adapt(net, variant, [lj.layers("stack", slice(-1, None)), "out"])
    shares = {name: components(problem)[name][0][:4] for name in (("stack", 1), ("out", None))}
    pairs = sorted((s, name) for name, each in shares.items() for s in each)[::-1]
    wanted = [[name for _, name in pairs[:4]].count(name) for name in shares]
    assert 0 < wanted[0] != 2

    seen = adapted.gather(KEY, params, x, batches=batches)
    trainable, frozen = adapted.init(KEY, params, x, batches=batches)
    ranks = lj.ranks(trainable, frozen)
    assert ranks["stack"].tolist() == [0, wanted[0]] and ranks["out"] == wanted[1]
    theta = check.random_like(trainable, seed=1)
    check.assert_close(
        adapted.apply(theta, frozen, x), net(adapted.merge(theta, frozen), jnp.asarray(x))
    )
    check.assert_close(adapted.merge(trainable, frozen)["stack"][0], params["stack"][0], 0.0)

    form = jax.eval_shape(lambda: (trainable, frozen))
    assert init_shapes(adapted, KEY, params, x, seen=seen) == form
    undivided, _ = init_shapes(adapted, KEY, params, x)
    assert undivided["adapters"]["stack"]["a"].shape == (2, 2, WIDTH)


def test_layers_of_several_stacked_axes_keep_their_places(problem):
    """With a rho of 1 each has the same rank; the first of two layers is left out."""
    params, batches = {"w": np.stack([[problem[0]["out"]] * 3] * 2)}, problem[1]

    def net(params, x):
        return lax.scan(
            lambda x, w: (lax.scan(lambda x, w: (x @ w, None), x, w)[0], None), x, params["w"]
        )[0]

    variant = variants.make("eva", rank=2, initialization="eva_rho_1")
    adapted = lj.adapt(net, variant, lj.layers("w", 1))
    found = adapted.init(KEY, params, batches[0][0], batches=batches)
    np.testing.assert_array_equal(lj.ranks(*found)["w"], [[0] * 3, [2] * 3])


def test_a_matrix_without_a_share_has_no_adapter(problem):
    """A half of the variance of two's inputs is in each direction; of all's, a sixth."""
    noise = np.random.RandomState(0).randn(50, WIDTH)
    x = np.linalg.qr(noise - noise.mean(axis=0))[0]
    params = {"two": np.ones((2, WIDTH)), "all": np.ones((2, WIDTH, WIDTH))}

    def net(params, x):
        return x[:, :2] @ params["two"] + x @ params["all"][0] + x @ params["all"][1]

    adapted = lj.adapt(net, variants.make("eva", rank=1), quantize={"all": lj.NF4()})
    trainable, frozen = adapted.init(KEY, params, x, batches=[(x,)])
    ranks = {path: rank.tolist() for path, rank in lj.ranks(trainable, frozen).items()}
    assert ranks["two"] == 2 and sorted(ranks["all"]) == [0, 1]
    assert trainable["adapters"]["all"]["a"].shape == (2, 1, WIDTH)

    single = {**params, "all": params["all"][0]}  # now budget and shares leave it nothing
    adapted = lj.adapt(
        lambda p, x: x[:, :2] @ p["two"] + x @ p["all"],
        variants.make("eva", rank=1),
        quantize={"all": lj.NF4()},
    )
    trainable, frozen = adapted.init(KEY, single, x, batches=[(x,)])
    assert trainable["adapters"].keys() == {"two"} and lj.ranks(trainable, frozen)["two"] == 2
    assert frozen.base["all"].keys() == {"codes", "absmax"}  # it stays as it is stored
    apply, plain = adapted.apply(trainable, frozen, x), adapted.disable(trainable, frozen)
    check.assert_close(apply, adapted.forward(plain, jnp.asarray(x)), 1e-12)


def test_division_is_a_count_of_the_first_of_all_shares():
    def seen(*variances):
        values = np.array(variances)
        return SeenInputs(None, values, values.sum() + 1.0, None, None)  # type: ignore[arg-type]

    several = [seen(9.0, 0.0), seen(3.0, 2.0), seen(0.5, 0.5)]  # shares .9, 0; 1/2, 1/3; 1/4, 1/4
    assert initialization.divide(several, 1, [2, 2, 2]) == [1, 2, 0]
    assert initialization.divide(several, 1, [2, 1, 2]) == [1, 1, 1]
    assert initialization.divide(several, 2, [2, 2, 2]) == [2, 2, 2]
