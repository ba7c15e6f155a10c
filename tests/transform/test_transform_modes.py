"""`apply` under JAX's own transformations, and what it promises beside its value."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo.check as check
from zoo.case import seeded
from zoo.decoder import decoder

import lora_jax as lj
from variants.lora import LoRA

pytestmark = pytest.mark.usefixtures("x64")


class Setup:
    """The decoder with all its weights adapted, random factors, the same through merging."""

    def __init__(self, **settings):
        self.case = seeded("modes", decoder)()
        variant = LoRA(**{"rank": 2, "alpha": 2.0, **settings})
        self.adapted = lj.adapt(self.case.forward, variant, self.case.targets, also_train="bias")
        init = jax.jit(self.adapted.init)
        start, self.frozen = init(jax.random.key(0), self.case.params, *self.case.args)
        self.start = start
        self.theta = check.random_like(start, seed=1)

    def apply(self, theta, frozen=None, **kwargs):
        frozen = self.frozen if frozen is None else frozen
        return self.adapted.apply(theta, frozen, *self.case.args, **kwargs)

    def merged(self, theta, frozen=None):
        frozen = self.frozen if frozen is None else frozen
        return self.case.forward(self.adapted.merge(theta, frozen), *self.case.args)

    def loss(self, theta):
        return of_loss(self.apply)(theta)


@pytest.fixture(scope="module")
def setup():
    with jax.enable_x64():
        return Setup()


def of_loss(function):
    return lambda theta: check.scalar_of(jax.tree.map(jnp.tanh, function(theta)))


DERIVATIVES = {
    "forward": lambda f, at, along: jax.jvp(f, (at,), (along,)),
    "forward over reverse": lambda f, at, along: jax.jvp(jax.grad(of_loss(f)), (at,), (along,)),
    "reverse over forward": lambda f, at, along: jax.grad(
        lambda t: jax.jvp(of_loss(f), (t,), (along,))[1]
    )(at),
    "rematerialised": lambda f, at, along: jax.grad(jax.checkpoint(of_loss(f)))(at),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_are_those_through_merging(name, setup):
    along = check.random_like(setup.theta, seed=2)
    ways = setup.apply, setup.merged
    both = jax.jit(lambda theta: [DERIVATIVES[name](f, theta, along) for f in ways])
    check.assert_close(*both(setup.theta), tolerance=1e-9)


def test_gradient_against_finite_differences(setup):
    tangent, step = check.random_like(setup.theta, seed=2), 1e-5

    @jax.jit
    def both(distance):
        theta = jax.tree.map(lambda t, v: t + distance * v, setup.theta, tangent)
        return jax.value_and_grad(setup.loss)(theta)

    near, far = ([both(sign * n * step)[0] for sign in (1.0, -1.0)] for n in (1, 2))
    slope = (8 * (near[0] - near[1]) - (far[0] - far[1])) / (12 * step)
    pairs = zip(*map(jax.tree.leaves, (both(0.0)[1], tangent)), strict=True)
    assert sum(np.vdot(g, v) for g, v in pairs) == pytest.approx(float(slope), rel=1e-8)


def test_gradient_by_the_inputs_and_by_the_frozen_weights(setup):
    """Not what training does, but `apply` is a function like others."""

    def loss(base, function):
        frozen = dataclasses.replace(setup.frozen, base=base)
        return check.scalar_of(function(setup.theta, frozen))

    both = jax.jit(lambda base: [jax.grad(loss)(base, f) for f in (setup.apply, setup.merged)])
    check.assert_close(*both(setup.frozen.base))


def test_vmap_over_trainables_and_constants(setup):
    """What a sweep does: adapters and their settings stacked, the base shared."""
    many = [check.random_like(setup.theta, seed) for seed in range(3)]
    settings = setup.frozen.constants
    constants = jax.tree.map(lambda leaf: np.stack([n * leaf for n in (0.5, 1.0, 3.0)]),
                             jax.tree.map(np.asarray, settings))  # fmt: skip

    def gradient(theta, constants):
        frozen = dataclasses.replace(setup.frozen, constants=constants)
        return jax.value_and_grad(lambda t: check.scalar_of(setup.apply(t, frozen)))(theta)

    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *many)
    together = jax.tree.map(np.asarray, jax.jit(jax.vmap(gradient))(stacked, constants))
    one = jax.jit(gradient)
    for index, theta in enumerate(many):
        mine = jax.tree.map(lambda leaf, i=index: leaf[i], together)
        alone = one(theta, jax.tree.map(lambda leaf, i=index: leaf[i], constants))
        check.assert_close(mine, alone)


def test_named_axis_inside(x64):
    """A forward that talks to the other members of a `vmap`."""

    def forward(p, x):
        x = x - jax.lax.pmean(x, "batch")
        return jax.lax.psum(jnp.tanh(x @ p["w"]), "batch") @ p["w"].T

    params = {"w": check.random_like(np.zeros((4, 6)), 0)}
    xs = check.random_like(np.zeros((5, 4)), 1)
    adapted = lj.adapt(forward, LoRA(rank=2), "w")

    @jax.jit
    def both(params, xs):
        @functools.partial(jax.vmap, axis_name="batch")
        def start(x):
            return adapted.init(jax.random.key(0), params, x)

        trainable, frozen = jax.tree.map(lambda leaf: leaf[0], start(xs))
        theta = check.random_like(trainable, 2)
        mapped = functools.partial(jax.vmap, axis_name="batch", in_axes=(None, 0))
        mine = mapped(lambda t, x: adapted.apply(t, frozen, x))(theta, xs)
        return mine, mapped(lambda t, x: forward(adapted.merge(t, frozen), x))(theta, xs)

    check.assert_close(*both(params, xs))


def test_a_forward_that_closes_over_traced_values(setup):
    def loss(theta, factor, through):
        def forward(p, ids):
            return jax.tree.map(lambda y: jnp.sin(y * factor), setup.case.forward(p, ids))

        adapted = dataclasses.replace(setup.adapted, forward=forward)
        if through == "apply":
            return check.scalar_of(adapted.apply(theta, setup.frozen, *setup.case.args))
        return check.scalar_of(forward(adapted.merge(theta, setup.frozen), *setup.case.args))

    @jax.jit
    def both(theta, factor):
        gradient = jax.grad(loss, argnums=(0, 1))
        return [gradient(theta, factor, way) for way in ("apply", "merge")]

    check.assert_close(*both(setup.theta, 0.7))


def test_init_under_eval_shape_and_jit(setup):
    def init(params):
        return setup.adapted.init(jax.random.key(0), params, *setup.case.args)

    shapes = jax.eval_shape(init, setup.case.params)
    assert jax.tree.structure(shapes) == jax.tree.structure((setup.start, setup.frozen))
    plain = init(setup.case.params)
    check.assert_close((setup.start, setup.frozen), plain, tolerance=1e-14)
    wanted = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(plain)]
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(shapes)] == wanted
    # Also from shapes alone: nothing of a large model need exist.
    params, args = jax.eval_shape(lambda: (setup.case.params, setup.case.args))
    nothing = jax.eval_shape(lambda p: setup.adapted.init(jax.random.key(0), p, *args), params)
    assert jax.tree.structure(nothing) == jax.tree.structure(shapes)


def test_descriptions_are_values(setup):
    """Equal descriptions are interchangeable: nothing is traced or compiled a second time."""
    traces = []

    def forward(p, ids):
        traces.append(1)
        return setup.case.forward(p, ids)

    def make():
        adapted = lj.adapt(forward, LoRA(rank=2), list(setup.case.targets))
        return adapted, *adapted.init(jax.random.key(0), setup.case.params, *setup.case.args)

    first, theta, frozen = make()
    second, _, other = make()
    assert first == second and hash(first) == hash(second)
    assert frozen.spec == other.spec and hash(frozen.spec) == hash(other.spec)
    assert first != dataclasses.replace(first, rules=first.rules[:1])
    assert frozen.spec != setup.frozen.spec

    @functools.partial(jax.jit, static_argnums=0)
    def step(adapted, theta, frozen, ids):
        return adapted.apply(theta, frozen, ids)

    traces.clear()
    for adapted, each in ((first, frozen), (second, other), (first, other)):
        step(adapted, theta, each, *setup.case.args)
    assert len(traces) == 1 and step._cache_size() == 1


def test_nothing_is_ever_mutated_or_deleted(setup):
    params = jax.tree.map(lambda x: jnp.asarray(np.array(x)), setup.case.params)
    before = jax.tree.map(np.array, params)
    trainable, frozen = setup.adapted.init(jax.random.key(0), params, *setup.case.args)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(theta, frozen):
        def loss(theta):
            return check.scalar_of(setup.adapted.apply(theta, frozen, *setup.case.args))

        return jax.tree.map(lambda t, g: t - g, theta, jax.grad(loss)(theta))

    after = step(trainable, frozen)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(trainable))
    check.assert_close(params, before, tolerance=0)
    merge = jax.jit(setup.adapted.merge)
    merged = merge(after, frozen)
    plain = {name: getattr(setup.adapted, name)(after, frozen) for name in ("merge", "disable")}
    step(after, frozen)
    check.assert_close(plain["merge"], merged)
    check.assert_close(plain["disable"]["layers"]["bias"], merged["layers"]["bias"], tolerance=0)
    check.assert_close(params, before, tolerance=0)
    check.assert_close(merge(setup.start, frozen), before, tolerance=0)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
