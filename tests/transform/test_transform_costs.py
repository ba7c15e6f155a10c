"""What `apply` must not do: make anything as large as a weight. How exact it is in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo.check as check
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr

import lora_jax as lj
import variants
from variants.lora import LoRA

LAYOUT = ("slice", "dynamic_slice", "squeeze", "reshape", "transpose", "copy", "copy_p")


def shapes_made(jaxpr: Jaxpr):
    """The shapes of all that is computed, inside loops and calls too; what moves is not counted."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name not in LAYOUT:
            yield from (var.aval.shape for var in eqn.outvars)
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: isinstance(v, ClosedJaxpr)):
            if isinstance(value, Jaxpr | ClosedJaxpr):
                yield from shapes_made(getattr(value, "jaxpr", value))


def dense_like(shapes, weights) -> set:
    """Those of the size of a weight or of one of its matrices (sizes are chosen to be unusual)."""
    return {shape for shape in shapes if np.prod(shape, dtype=int) in weights}


WIDE = {"q": (3, 70, 2, 15), "up": (3, 70, 130), "down": (3, 70, 130), "head": (70, 11)}


def wide(p, x):
    def layer(x, w):
        x = x + jnp.einsum("bd,dhk->bhk", x, w["q"]).sum((1, 2))[:, None]
        return x + jnp.tanh(x @ w["up"]) @ w["down"].T, None

    stacks = {name: p[name] for name in ("q", "up", "down")}
    x, _ = lax.scan(jax.checkpoint(layer), x, stacks)
    for i in range(3):
        x = jnp.tanh(x @ p["up"][i] @ p["down"][i].T)
    return x @ p["head"]


def adapted_wide():
    """And what it takes, as shapes."""
    params = {n: jax.ShapeDtypeStruct(shape, jnp.float32) for n, shape in WIDE.items()}
    x = jax.ShapeDtypeStruct((7, 70), jnp.float32)
    adapted = lj.adapt(wide, LoRA(rank=2), ".*")
    return adapted, (*jax.eval_shape(adapted.init, jax.random.key(0), params, x), x)


def test_a_training_step_makes_nothing_of_a_weights_size():
    adapted, given = adapted_wide()
    sizes = {np.prod(shape) for shape in WIDE.values()}
    sizes |= {np.prod(shape[1:]) for shape in WIDE.values() if len(shape) > 2}

    def step(theta, frozen, x):
        return jax.grad(lambda t: jnp.sum(adapted.apply(t, frozen, x) ** 2))(theta)

    def merged(theta, frozen, x):
        return jax.grad(lambda t: jnp.sum(wide(adapted.merge(t, frozen), x) ** 2))(theta)

    made = dense_like(shapes_made(jax.make_jaxpr(step)(*given).jaxpr), sizes)
    assert not made
    # The same look at the merged path finds them, so that it would here:
    assert dense_like(shapes_made(jax.make_jaxpr(merged)(*given).jaxpr), sizes)


def test_operations_of_a_training_step():
    """Two wide layers: forward, and backward by the activations, but not by the weights."""
    tokens, width, rank = 512, 256, 4

    def forward(p, x):
        return jnp.tanh(x @ p["w1"]) @ p["w2"]

    matrix, x = (jax.ShapeDtypeStruct((n, width), jnp.float32) for n in (width, tokens))
    adapted = lj.adapt(forward, LoRA(rank=rank), ".*")
    given = jax.random.key(0), {"w1": matrix, "w2": matrix}, x
    trainable, frozen = jax.eval_shape(adapted.init, *given)

    def flops(function):
        step = jax.jit(jax.grad(lambda *given: jnp.sum(function(*given) ** 2)))
        return step.lower(trainable, frozen, x).compile().cost_analysis()["flops"]

    factored = flops(adapted.apply)
    merged = flops(lambda t, frozen, x: forward(adapted.merge(t, frozen), x))
    product = 2 * tokens * width * width
    low_rank = 2 * tokens * width * rank * 2
    # Two products forward, one backward through the second layer; each adapter 3 times its own.
    assert factored < 1.1 * (3 * product + 6 * low_rank)
    assert merged > 5 * product


def relative_error(actual, truth):
    return np.abs(np.asarray(actual, np.float64) - truth).max() / np.abs(truth).max()


EPS = float(jnp.finfo(jnp.bfloat16).eps)


def cast_all(p, x):
    x = x.astype(jnp.bfloat16)
    for name in ("w1", "w2"):
        x = jnp.tanh(x @ p[name].astype(jnp.bfloat16))
    return x


def cast_and_accumulate(p, x):
    x = x.astype(jnp.bfloat16)
    for name in ("w1", "w2"):
        w = p[name].astype(jnp.bfloat16)
        x = jnp.tanh(jnp.dot(x, w, preferred_element_type=jnp.float32)).astype(jnp.bfloat16)
    return x


def cast_weights_and_back(p, x):
    for name in ("w1", "w2"):
        x = jnp.tanh(x @ p[name].astype(jnp.bfloat16).astype(x.dtype))
    return x


def look_up(p, x):
    rows = p["w1"].astype(jnp.bfloat16)[np.arange(48) % 32]
    return rows @ p["w2"].astype(jnp.bfloat16).T


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("method", ["lora", "dora", "vera"])
def test_products_summed_in_float32_keep_their_digits(method, side):
    """Of bfloat16 operands, with either axis of the weight: at the start, they are the base's."""
    random = np.random.RandomState(0)
    w, x = (random.randn(32, 32).astype(jnp.bfloat16) for _ in range(2))

    def forward(p, x):
        numbers = (((1,), (side,)), ((), ()))
        return jax.lax.dot_general(x, p["w"], numbers, preferred_element_type=jnp.float32)

    adapted = lj.adapt(forward, variants.make(method, rank=4), "w")
    found = adapted.apply(*adapted.init(jax.random.key(0), {"w": w}, x), x)
    truth = x.astype(np.float64) @ (w if side == 0 else w.T).astype(np.float64)
    assert found.dtype == jnp.float32
    assert relative_error(found, truth) < 1e-5  # rounded on the way, 1e-3 and more


@pytest.mark.parametrize(
    "forward, stored",
    [
        (cast_all, jnp.float32),
        (cast_all, jnp.bfloat16),
        (cast_and_accumulate, jnp.float32),
        (cast_weights_and_back, jnp.float32),
        (look_up, jnp.bfloat16),
    ],
)
def test_narrow_dtypes(forward, stored, x64):
    """No further from the float64 truth than the merged path, plus a few units of rounding.

    The merged path rounds W + BA once; the factored one rounds W, A, B and two products. Each of
    those is within one unit of its largest term, a layer amplifies what came before by about one.
    """
    random = np.random.RandomState(0)
    params = {n: (0.15 * random.randn(32, 32)).astype(stored) for n in ("w1", "w2")}
    x, cotangent = (0.3 * random.randn(2, 48, 32)).astype(np.float32)
    adapted = lj.adapt(forward, LoRA(rank=4, alpha=4.0), ".*")

    def exactly(adapters, params, x):
        """The same function without a cast, in float64."""
        deltas = {name: each["a"].T @ each["b"] for name, each in adapters.items()}
        if forward is look_up:  # w2 is used by its transpose: its in axis is the last
            deltas["w2"] = deltas["w2"].T
        p = {n: w.astype(jnp.float64) + deltas[n] for n, w in params.items()}
        if forward is look_up:
            return p["w1"][np.arange(48) % 32] @ p["w2"].T
        return jnp.tanh(jnp.tanh(x @ p["w1"]) @ p["w2"])

    @jax.jit
    def computed(params, x, cotangent):
        start, frozen = adapted.init(jax.random.key(0), params, x)
        theta = check.random_like(start, 2)
        doubles = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), theta["adapters"])

        def outputs_and_gradient(function, at):
            y, pull = jax.vjp(function, at)
            return y, pull(cotangent[: len(y), : y.shape[1]].astype(y.dtype))[0]

        truth = outputs_and_gradient(lambda t: exactly(t, params, x.astype(jnp.float64)), doubles)
        mine = outputs_and_gradient(lambda t: adapted.apply(t, frozen, x), theta)
        theirs = outputs_and_gradient(lambda t: forward(adapted.merge(t, frozen), x), theta)
        return start, adapted.apply(start, frozen, x), truth, mine, theirs

    start, plain, (truth, exact), *both = computed(params, x, cotangent)
    (factored, mine), (merged, theirs) = both
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(start))
    assert factored.dtype == merged.dtype
    truth, exact = np.asarray(truth), jax.tree.map(np.asarray, exact)
    assert relative_error(factored, truth) <= relative_error(merged, truth) + 4 * EPS
    assert relative_error(merged, truth) < 16 * EPS  # the truth is of the same function
    assert relative_error(plain, truth) > 16 * EPS  # adapters matter
    for name, each in exact.items():
        for letter in "ab":
            got, other = (g["adapters"][name][letter] for g in (mine, theirs))
            bound = relative_error(other, each[letter]) + 4 * EPS
            assert relative_error(got, each[letter]) <= bound
