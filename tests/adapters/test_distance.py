"""How far apart adapters are, against SVDs of the dense updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lora_jax as lj
import variants
from lora_jax.contract.clause import by_numpy
from lora_jax.contract.toys import noisy

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)
PARAMS = {"layers": RNG.standard_normal((2, 6, 6)), "last": RNG.standard_normal((6, 4))}
X = RNG.standard_normal((3, 6))


def forward(params, x):
    for layer in range(2):
        x = x + jnp.tanh(x @ params["layers"][layer])
    return x @ params["last"]


def adapter(seed, targets):
    """An adapter with random trainables, and its dense updates."""
    adapted = lj.adapt(forward, None, targets)
    params = jax.tree.map(jnp.asarray, PARAMS)
    begun, frozen = jax.jit(adapted.init)(jax.random.key(seed), params, X)
    trainable = noisy(begun, seed)
    merged = by_numpy(adapted.merge)(trainable, frozen)
    return (trainable, frozen), {name: merged[name] - PARAMS[name] for name in PARAMS}


@pytest.fixture(scope="module")
def pair():
    with jax.enable_x64(True):
        one = adapter(1, {".*": variants.make("lora", rank=2)})
        some = {lj.layers("layers", 1): variants.make("dora", rank=3)}
        return one, adapter(2, some)


def test_norms(pair):
    for each, updates in pair:
        for path, (size, relative) in lj.distance.norms(each).items():
            wanted = np.linalg.norm(updates[path], axis=(-2, -1))
            np.testing.assert_allclose(size, wanted, rtol=1e-12)
            base = np.linalg.norm(PARAMS[path], axis=(-2, -1))
            np.testing.assert_allclose(relative, wanted / base, rtol=1e-12)
    assert lj.distance.norms(pair[0][0]).keys() == PARAMS.keys()
    assert lj.distance.norms(pair[1][0])["layers"].update[0] == 0


def test_cosines(pair):
    (one, first), (other, second) = pair
    found = lj.distance.cosine(one, other)
    assert found.keys() == {"layers"} and np.isnan(found["layers"][0])
    u, v = first["layers"][1].ravel(), second["layers"][1].ravel()
    wanted = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
    np.testing.assert_allclose(found["layers"][1], wanted, rtol=1e-12)
    np.testing.assert_allclose(lj.distance.cosine(one, one)["last"], 1, rtol=1e-12)


@pytest.mark.parametrize("side", ["in", "out"])
def test_subspaces_are_compared_by_equation_4(pair, side):
    (one, first), (other, second) = pair
    found = lj.distance.subspace_similarity(one, other, 2, 4, side)["layers"]
    assert found.shape == (2, 2, 4) and np.isnan(found[0]).all()

    def vectors(array):
        u, _, vt = np.linalg.svd(array[1])
        return u if side == "in" else vt.T

    u, v = vectors(first["layers"]), vectors(second["layers"])
    for i in range(1, 3):
        for j in range(1, 5):
            wanted = np.linalg.norm(u[:, :i].T @ v[:, :j]) ** 2 / min(i, j)
            np.testing.assert_allclose(found[1, i - 1, j - 1], wanted, rtol=1e-9)
    own = lj.distance.subspace_similarity(one, one, 3, 3, side)["last"]
    np.testing.assert_allclose(np.diag(own)[:2], 1, rtol=1e-9)
    assert np.isnan(own[2]).all() and np.isnan(own[:, 2]).all()  # its rank is two


def test_intruders_are_new_directions(pair):
    """A large update along no single old direction intrudes; a rescaled W has the old ones."""
    begun, frozen = pair[0][0]
    u, _, vt = np.linalg.svd(PARAMS["last"], full_matrices=False)
    new = 50 * np.outer(u[:, 0], vt.sum(axis=0) / 2)
    old = 50 * np.outer(u[:, 0], vt[0])
    minor = 50 * np.outer(u[:, 2], vt[2])  # leads now, and is not new
    scale = float(frozen.constants["last"]["scale"])
    cases = ((new, 1, 0.6, 1), (new, 1, 0.4, 0), (old, 4, 0.9, 0), (minor, 1, 0.9, 0))
    for update, k, epsilon, wanted in cases:
        left, s, right = np.linalg.svd(update)
        a, b = (left[:, :2] * s[:2]).T / scale, right[:2]
        factors = {"last": {"a": jnp.asarray(a), "b": jnp.asarray(b)}}
        trainable = {**begun, "adapters": begun["adapters"] | factors}
        assert lj.distance.intruder_dimensions((trainable, frozen), k, epsilon)["last"] == wanted


@pytest.mark.parametrize(
    ("measure", "options", "said"),
    [
        ("subspace_similarity", {"side": "inn"}, "side 'inn' is unknown; nearest: 'in'"),
        ("subspace_similarity", {"i": 0}, "i must"),
        ("intruder_dimensions", {"k": 0}, "k must"),
    ],
)
def test_settings_that_cannot_work(pair, measure, options, said):
    adapters = [each for each, _ in pair][: 1 if measure == "intruder_dimensions" else 2]
    with pytest.raises(ValueError, match=said):
        getattr(lj.distance, measure)(*adapters, **options)
