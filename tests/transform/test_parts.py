"""A weight that a program takes apart by `unstack` or `split` is followed as if it were indexed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo.check as check
from jax import lax
from zoo.case import Case, seeded

import lora_jax as lj
from variants.lora import LoRA

pytestmark = pytest.mark.usefixtures("x64")


def indexed(w, axis=0):
    return [lax.index_in_dim(w, i, axis, keepdims=False) for i in range(w.shape[axis])]


def sliced(w, sizes, axis=0):
    ends = itertools.accumulate(sizes, initial=0)
    return [lax.slice_in_dim(w, a, b, axis=axis) for a, b in itertools.pairwise(ends)]


KEY = jax.random.key(0)
UNSTACK, SPLIT = (lax.unstack, indexed), (lax.split, sliced)


def transposed_in_turn(take):
    def forward(p, x):
        for w in take(p["w"]):
            x = jnp.tanh(x @ w.T)
        return x

    return forward


def stacked_in_the_middle(take):
    def forward(p, x):
        q, k, v = take(p["w"], axis=1)
        return (x @ q) * (x @ k) + x @ v

    return forward


def of_two_stacked_axes(take):
    """A part that is taken apart again, and one that is not used."""

    def forward(p, x):
        first, _ = take(p["w"])
        a, b = take(first)
        return x @ a, jnp.tanh(x @ a) @ b.T

    return forward


def of_one_layer(take):
    def forward(p, x):
        (w,) = take(p["w"])
        return x @ w

    return forward


def vmapped(take):
    def forward(p, x):
        return jax.vmap(transposed_in_turn(take))(p, jnp.stack([x, -x]))

    return forward


def blocks_of_layers(take):
    def forward(p, x):
        for part in take(p["w"], (1, 0, 2)):
            x = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, part)[0]
        return x

    return forward


def whole(take):
    def forward(p, x):
        (w,) = take(p["w"], (6,), axis=1)
        return x @ w

    return forward


def fused(take):
    """Parts of a matrix itself need the merged weight."""

    def forward(p, x):
        q, k = take(p["w"], (4, 2), axis=1)
        return (x @ q)[:, :2] * (x @ k)

    return forward


CASES = [
    (transposed_in_turn, *UNSTACK, (3, 4, 4)),
    (stacked_in_the_middle, *UNSTACK, (4, 3, 5)),
    (of_two_stacked_axes, *UNSTACK, (2, 2, 4, 5)),
    (of_one_layer, *UNSTACK, (1, 4, 5)),
    (vmapped, *UNSTACK, (2, 3, 4, 4)),
    (blocks_of_layers, *SPLIT, (3, 4, 4)),
    (whole, *SPLIT, (4, 6)),
    (fused, *SPLIT, (4, 6)),
]


@pytest.mark.parametrize(
    ("make", "take", "like", "shape"), CASES, ids=[make.__name__ for make, *_ in CASES]
)
def test_parts_are_followed_as_slices_are(make, take, like, shape):
    def case(take):
        return seeded("parts", lambda n: Case(make(take), {"w": n(*shape)}, (n(3, 4),)))()

    def adapted(case):
        """All that is said of it, and computed."""
        uses = lj.discover(case.forward, case.params, *case.args)
        adapter = check.adapt(case)

        def run():
            start, frozen = adapter.init(KEY, case.params, *case.args)
            theta = check.random_like(start, seed=1)
            merged = adapter.merge(theta, frozen)
            through = case.forward(merged, *case.args)
            return (
                theta,
                merged,
                through,
                *check.derivative(lambda theta: adapter.apply(theta, frozen, *case.args), theta),
            )

        return uses, check.by_numpy(run)()

    def merges():
        """Whether the weight is merged."""
        paths, one = set(), case(take)
        adapter = check.adapt(one, paths)
        start, frozen = adapter.init(KEY, one.params, *one.args)
        jax.eval_shape(lambda: adapter.apply(start, frozen, *one.args))
        return bool(paths)

    (uses, found), (expected, wanted) = adapted(case(take)), adapted(case(like))
    assert uses == expected and uses["w"].is_linear
    assert any(use.merges for use in uses["w"].uses) == merges() == (make is fused)
    check.assert_close(found, wanted)
    check.assert_close(found[3], found[2])


@pytest.mark.parametrize(("make", "take", "like", "shape"), [CASES[0], CASES[2]])
def test_parts_drop_the_entries_that_slices_drop(make, take, like, shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)))
    outputs = []
    for one in (take, like):
        adapted = lj.adapt(make(one), LoRA(rank=2, dropout=0.5), "all-linear")
        start, frozen = adapted.init(KEY, {"w": jnp.ones(shape)}, x)
        theta = check.random_like(start, seed=1)
        outputs.append(adapted.apply(theta, frozen, x, dropout_key=KEY))
    check.assert_close(*outputs)
    off = adapted.apply(theta, frozen, x)
    assert not np.allclose(jax.tree.leaves(off)[0], jax.tree.leaves(outputs[0])[0])
