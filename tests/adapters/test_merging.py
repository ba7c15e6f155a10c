"""One update of several, for one matrix, against dense arithmetic spelled out in NumPy."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from lora_jax.adapters.merging import Method, dare, ties
from lora_jax.adapters.updates import Factored, dense, of_rank

CASES = {"max_examples": 60, "deadline": None}
SIDES = st.sampled_from([(1, 1), (4, 7), (6, 3)])  # each pair compiles an SVD


@st.composite
def updates(draw, least=1):
    """Updates of one matrix: factored with unequal ranks, dense, or none, but not all none."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    inputs, outputs = draw(SIDES)
    kinds = draw(st.lists(st.sampled_from(["dense", "none", 1, 2, 3]), min_size=least, max_size=4))
    made = []
    for kind in kinds:
        if kind == "dense":
            made.append(rng.standard_normal((inputs, outputs)))
        elif kind == "none":
            made.append(None)
        else:
            a, b = (rng.standard_normal((kind, size)) for size in (inputs, outputs))
            made.append(Factored(a, b))
    made[0] = Factored(np.ones((1, inputs)), np.ones((1, outputs))) if made[0] is None else made[0]
    weights = rng.uniform(-2, 2, len(made))
    return made, weights


def arrays(made):
    """All of them dense; zeros where there is none."""
    like = dense(made[0])
    return [np.zeros_like(like) if each is None else dense(each) for each in made]


@settings(**CASES)
@given(updates())
def test_weighted_sums_are_those_of_the_dense_updates(case):
    made, weights = case
    total = sum(w * each for w, each in zip(weights, arrays(made), strict=True))
    found = Method("sum", tuple(weights))(made)
    np.testing.assert_allclose(dense(found), total, atol=1e-12)
    ranks = [len(each.a) if isinstance(each, Factored) else 0 for each in made if each is not None]
    if all(ranks):
        assert len(found.a) == sum(ranks)
    np.testing.assert_allclose(dense(Method("negate", tuple(weights))(made)), -total, atol=1e-12)
    shares = np.abs(weights) + 0.1
    mean = dense(Method("linear", tuple(shares))(made))
    dense_mean = np.average(arrays(made), axis=0, weights=shares)
    np.testing.assert_allclose(mean, dense_mean, atol=1e-12)


def ties_by_entry(made, weights, density):
    """Yadav et al. 2023, algorithm 1, entry by entry."""
    trimmed = []
    for weight, each in zip(weights, made, strict=True):
        order = sorted(range(each.size), key=lambda i, each=each: -abs(each.flat[i]))
        kept = set(order[: max(1, int(density * each.size))])
        trimmed.append([weight * x if i in kept else 0.0 for i, x in enumerate(each.flat)])
    found = []
    for values in zip(*trimmed, strict=True):
        elected = np.sign(sum(values))
        agreeing = [v for v in values if v and np.sign(v) == elected]
        found.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return np.reshape(found, made[0].shape)


@settings(**CASES)
@given(updates(least=2), st.floats(0.05, 1))
def test_ties_is_the_papers_algorithm(case, density):
    made, weights = case
    rng = np.random.default_rng(0)  # no two magnitudes are equal
    noisy = [each + 1e-3 * rng.standard_normal(each.shape) for each in arrays(made)]
    wanted = ties_by_entry(noisy, weights, density)
    np.testing.assert_allclose(ties(noisy, weights, density), wanted, atol=1e-14)
    np.testing.assert_array_equal(
        Method("ties", tuple(weights), density)(noisy), ties(noisy, weights, density)
    )


def test_ties_of_entries_that_cancel_is_zero():
    one = np.asarray([[1.0, -2.0, 3.0]])
    np.testing.assert_array_equal(ties([one, -one], [1, 1], 1.0), 0 * one)
    np.testing.assert_array_equal(ties([one, None], [2, 1], 1.0), 2 * one)


def test_dare_drops_and_rescales():
    """Of 40,000 entries a share of density stays: five standard deviations are 0.01."""
    array = np.random.default_rng(0).standard_normal((200, 200)) + 3
    found = dare(array, 0.2, np.random.default_rng(1))
    kept = found != 0
    np.testing.assert_allclose(found[kept], array[kept] / 0.2)
    assert abs(kept.mean() - 0.2) < 0.01
    assert abs(found.mean() / array.mean() - 1) < 0.06


def test_what_dare_drops_depends_on_seed_adapter_and_place():
    same = [np.ones((30, 30))] * 2
    first = Method("dare", (1.0, 0.0), 0.5, seed=3)
    drawn = first(same, (7, 0))
    np.testing.assert_array_equal(drawn, first(same, (7, 0)))
    others = [
        Method("dare", (1.0, 0.0), 0.5, seed=4)(same, (7, 0)),
        Method("dare", (0.0, 1.0), 0.5, seed=3)(same, (7, 0)),
        first(same, (7, 1)),
        first(same, (8, 0)),
    ]
    for one, other in itertools.combinations([drawn, *others], 2):
        assert (one != other).mean() > 0.3


@settings(**CASES)
@given(updates(), st.integers(1, 7))
def test_a_cut_is_the_closest_of_its_rank_and_says_its_error(case, rank):
    update = Method("sum", tuple(case[1]))(case[0])
    whole = dense(update)
    rank = min(rank, *whole.shape)
    found, error = of_rank(update, rank)
    u, s, vt = np.linalg.svd(whole, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vt[:rank]
    assert found.a.shape == (rank, len(whole)) and found.b.shape == (rank, whole.shape[1])
    size = max(np.linalg.norm(whole), 1e-300)
    wanted = np.linalg.norm(s[rank:]) / size
    assert abs(error - wanted) < 1e-7
    assert abs(np.linalg.norm(dense(found) - whole) / size - wanted) < 1e-7
    if rank < len(s) and s[rank - 1] > 1.01 * s[rank] + 1e-6 * s[0]:  # else it is not unique
        np.testing.assert_allclose(dense(found), best, atol=1e-6 * s[0])


def test_nothing_to_cut():
    zero, error = of_rank(np.zeros((4, 3)), 2)
    assert error == 0 and not np.any(dense(zero))
    empty = Factored(np.zeros((0, 4)), np.zeros((0, 3)))
    zero, error = of_rank(empty, 2)
    assert error == 0 and zero.a.shape == (2, 4) and not np.any(dense(zero))


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        (("tyes", (1.0,)), "no way 'tyes' to combine adapters; nearest: 'ties'"),
        (("sum", (1.0, float("nan"))), "expected finite numbers"),
        (("linear", (1.0, -1.0)), "'linear' divides by their sum"),
        (("interpolate", (1.0,)), "takes two adapters"),
        (("interpolate", (0.7, 0.4)), "weights that sum to 1"),
        (("sum", (1.0,), 0.5), "density is for ties, dare"),
        (("ties", (1.0,), 0.0), r"not in \(0, 1\]"),
        (("dare", (1.0,), 1.5), r"not in \(0, 1\]"),
        (("dare", (1.0,), 0.5, -1), "seed must be an integer of at least 0, got -1"),
    ],
)
def test_settings_that_cannot_work(settings_, said):
    with pytest.raises(ValueError, match=said) as error:
        Method(*settings_)
    assert "\n" not in str(error.value)
