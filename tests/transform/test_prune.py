"""Which rows of factors are given up, and adapters without them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adalora_net import random_like
from hypothesis import given, settings, strategies as st
from jax import lax

import lora_jax as lj
from lora_jax.methods.rank_budget import best
from lora_jax.transform.placement import group_of
from lora_jax.transform.prune import prune, ranks
from variants.adalora import AdaLoRA
from variants.lora import LoRA

KEY = jax.random.key(0)


LAYOUTS = [[(7,)], [(2, 4), (3,), (1, 2, 5)]]


@settings(max_examples=60)
@given(
    shapes=st.sampled_from(LAYOUTS),
    distinct=st.integers(1, 5),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_the_best_are_as_many_as_asked_for_and_the_first_of_equals(shapes, distinct, seed, data):
    random = np.random.RandomState(seed)
    values = np.array([-np.inf, -1.0, 0.0, -0.0, 2.0])[:distinct]
    scores = {f"p{9 - i}": random.choice(values, shape) for i, shape in enumerate(shapes)}
    flat = np.concatenate([each.ravel() for each in scores.values()])
    count = data.draw(st.integers(0, flat.size))
    got = best({p: jnp.asarray(s) for p, s in scores.items()}, jnp.asarray(count))
    expected = np.zeros(flat.size, bool)
    expected[sorted(range(flat.size), key=lambda i: (-flat[i], i))[:count]] = True
    assert list(got) == list(scores)  # in the order given, which is not the paths' own
    for path, mine in got.items():
        assert mine.shape == scores[path].shape
    np.testing.assert_array_equal(np.concatenate([x.ravel() for x in got.values()]), expected)


# -- taking out what is gone -------------------------------------------------------------------


def chain(params, x):
    """A plain matrix, a stack and a LoRA one after another."""
    x = jnp.tanh(x @ params["v"])
    x = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["w"])[0]
    return x @ params["z"]


CHAIN = {"v": (6, 8), "w": (4, 8, 8), "z": (8, 5)}


def half_gone(seed, targets, **options):
    """An adapted chain at random, some e of each matrix zero and all of some, and its state."""
    random = np.random.RandomState(seed)
    params = {name: random.randn(*shape) for name, shape in CHAIN.items()}
    x = random.randn(3, 6)
    adapted = lj.adapt(chain, targets=targets, also_train=(), **options)
    trainable, frozen = jax.jit(adapted.init)(KEY, params, x)
    trainable = random_like(trainable, seed)
    state = list(jax.jit(adapted.init_state)(trainable, frozen))
    (number,) = [i for i, each in enumerate(state) if each is not None]
    for path, kept in state[number]["kept"].items():
        rank = kept.shape[-1]
        counts = random.randint(0, rank + 1, (*kept.shape[:-1], 1))
        kept = random.rand(*kept.shape).argsort(-1) < counts
        factors = trainable["adapters"][path]
        factors["e"] = jnp.asarray(np.where(kept, factors["e"], 0))
        state[number]["kept"][path] = jnp.asarray(kept)
    return adapted, trainable, frozen, tuple(state), x


ADALORA = AdaLoRA(rank=4, target_rank=4, total_steps=10)


@pytest.mark.parametrize("seed, mode", [(4, "paper"), (5, "reference")])
def test_pruned_adapters_have_the_same_effect(seed, mode, x64):
    """Of 4, nothing is left of v; with odd seeds, a layer is left out."""
    adalora = dataclasses.replace(ADALORA, mode=mode, dropout=0.25)
    targets = {
        "v": adalora,
        lj.layers("w", slice(seed % 2, None)): adalora,
        "z": LoRA(rank=2),
    }
    adapted, trainable, frozen, state, x = half_gone(seed, targets)
    less, smaller = prune(trainable, frozen, state)

    @jax.jit
    def uses(trainable, frozen):
        gradient = jax.grad(lambda t: (adapted.apply(t, frozen, x) ** 2).sum())(trainable)
        both = adapted.apply(trainable, frozen, x), adapted.merge(trainable, frozen)
        return both, gradient["adapters"]

    (mine, gradient), (wanted, _) = uses(less, smaller), uses(trainable, frozen)
    jax.tree.map(lambda *both: np.testing.assert_allclose(*both, atol=1e-12), mine, wanted)

    kept = next(each for each in state if each is not None)["kept"]
    counts = {path: np.asarray(each).sum(-1) for path, each in kept.items()}
    if seed % 2:
        counts["w"][0] = 0
    found = ranks(less, smaller)
    for path, factors in list(trainable["adapters"].items())[:2]:
        np.testing.assert_array_equal(ranks(trainable, frozen)[path], counts[path])
        if not counts[path].any():
            assert path not in less["adapters"] and path not in found
            continue
        np.testing.assert_array_equal(found[path], counts[path])
        rank = counts[path].max()
        a, b = less["adapters"][path]["a"], less["adapters"][path]["b"]
        assert a.shape[:-1] == b.shape[:-1] == (*factors["e"].shape[:-1], rank)
        (own,) = (group_of(each) for each in smaller.spec.adapted if each.use.path == path)
        assert own.scaling() == pytest.approx(adalora.scaling())  # as its settings say it, too
        assert own.dropout == 0.25 and (smaller.constants[path]["keep"] == 0.75).all()
    assert less["adapters"]["z"] is trainable["adapters"]["z"]
    assert found["z"] == 2
    sums = {"v": 14, "w": 16, "z": 13}
    rows = {row[0]: row[5] for row in lj.summary(less, smaller).rows}
    assert rows == {path: int(each.sum()) * sums[path] for path, each in found.items()}

    # rows that fill a stack up stay without effect when training goes on
    for path in set(less["adapters"]) & {"w"}:
        alive = np.arange(counts[path].max()) < counts[path][:, None]
        for leaf in map(np.asarray, gradient[path].values()):
            assert not leaf[~alive].any()
    again = prune(less, smaller, adapted.init_state(less, smaller))
    assert jax.tree.all(jax.tree.map(np.array_equal, again, (less, smaller)))


def test_an_adapter_of_which_nothing_is_left_is_gone(x64):
    """Its weight stays as it is stored."""
    adapted, trainable, frozen, state, x = half_gone(0, {"v": ADALORA}, quantize={"v|z": lj.NF4()})
    trainable["adapters"]["v"]["e"] = jnp.zeros(4)
    state[0]["kept"]["v"] = jnp.zeros(4, bool)
    less, smaller = prune(trainable, frozen, state)
    assert less["adapters"] == {} and ranks(less, smaller) == {}
    apply = jax.jit(adapted.apply)
    wanted = apply(trainable, frozen, x)
    np.testing.assert_allclose(apply(less, smaller, x), wanted, atol=1e-12)
    assert adapted.init_state(less, smaller) == ()


def test_before_ranks_are_fixed_pruning_keeps_what_may_still_matter(x64):
    """Kept triplets whose e is zero, as at the start, and others that have learnt again."""
    params = {"v": np.ones((6, 5))}
    adapted = lj.adapt(lambda p, x: x @ p["v"], ADALORA, "v")
    trainable, frozen = jax.jit(adapted.init)(KEY, params, np.ones((2, 6)))
    state = jax.jit(adapted.init_state)(trainable, frozen)
    assert ranks(trainable, frozen)["v"] == 0
    assert ranks(*prune(trainable, frozen, state))["v"] == 4
    trainable["adapters"]["v"]["e"] = jnp.asarray(np.array([0.0, 1.0, 0.0, 0.0]))
    state[0]["kept"]["v"] = jnp.asarray(np.array([False, False, True, False]))
    less, _ = prune(trainable, frozen, state)
    np.testing.assert_array_equal(
        less["adapters"]["v"]["a"], np.asarray(trainable["adapters"]["v"]["a"])[[1, 2]]
    )


def test_ranks_of_other_methods_are_their_own(x64):
    rules = {lj.layers("w", 1): LoRA(rank=2), lj.layers("w", 3): LoRA(rank=5), "v": LoRA(rank=3)}
    params = {name: np.ones(shape) for name, shape in CHAIN.items()}
    adapted = lj.adapt(chain, targets=rules)
    found = ranks(*jax.jit(adapted.init)(KEY, params, np.ones((2, 6))))
    assert {path: each.tolist() for path, each in found.items()} == {"v": 3, "w": [0, 2, 0, 5]}
