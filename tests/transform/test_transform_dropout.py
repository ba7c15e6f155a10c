"""Adapter dropout: off without a key, and another mask for every use of every weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lora_jax as lj
from variants.lora import LoRA

pytestmark = pytest.mark.usefixtures("x64")

D = 16
KEY = jax.random.key(7)


def setup(forward, weights, size=D, **options):
    """Weights that are zero, and adapters that are the identity: what comes out is the mask."""
    x = jnp.ones((1, size))
    adapted = lj.adapt(forward, LoRA(rank=size, alpha=size, dropout=0.5), ".*", **options)
    trainable, frozen = adapted.init(jax.random.key(0), weights, x)
    theta = jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.eye(size), leaf.shape), trainable)
    return lambda key=None, x=x: adapted.apply(theta, frozen, x, dropout_key=key)


def zeros(*lead):
    return jnp.zeros((*lead, D, D))


def scan_over_layers(p, x):
    return lax.scan(lambda c, w: (c, x @ w), 0, p["w"])[1]


def python_loop(p, x):
    return jnp.stack([x @ p["w"][i] for i in range(4)])


def vmap(p, x):
    return jax.vmap(lambda x, w: x @ w)(jnp.stack([x] * 4), p["w"])


def rematerialised(p, x):
    layer = jax.checkpoint(lambda x, w: x @ w)
    return lax.scan(lambda c, w: (c, layer(x, w)), 0, p["w"])[1]


def twice_in_python(p, x):
    return jnp.stack([x @ p["w"] for _ in range(4)])


def jitted_calls(p, x):
    layer = jax.jit(lambda x, w: x @ w)
    return jnp.stack([layer(x, p["w"]) for _ in range(4)])


def constant_of_a_scan(p, x):
    return lax.scan(lambda c, _: (c, x @ p["w"]), 0, length=4)[1]


def constant_of_a_while(p, x):
    def body(state):
        i, ys = state
        return i + 1, ys.at[i].set(x @ p["w"])

    return lax.while_loop(lambda state: state[0] < 4, body, (0, jnp.zeros((4, 1, D))))[1]


def both_branches(p, x):
    def of(flag):
        return lax.cond(flag, lambda: x @ p["w"], lambda: x @ p["w"])

    return jnp.stack([of(True), of(False), of(x[0, 0] > 0), of(x[0, 0] < 0)])


def stack_in_a_scan(p, x):
    xs = jnp.stack([x] * 2)
    return lax.scan(lambda c, _: (c, jax.vmap(jnp.matmul)(xs, p["w"])), 0, length=2)[1]


STACKED = [
    *(scan_over_layers, python_loop, vmap, rematerialised),
]
SHARED = [
    *(twice_in_python, jitted_calls, constant_of_a_scan, constant_of_a_while, both_branches),
]


@pytest.mark.parametrize("forward", [*STACKED, *SHARED, stack_in_a_scan], ids=lambda f: f.__name__)
def test_every_use_has_a_mask_of_its_own(forward):
    lead = (4,) if forward in STACKED else (2,) if forward is stack_in_a_scan else ()
    apply = setup(forward, {"w": zeros(*lead)})

    @jax.jit
    def three():
        return [apply(key).reshape(4, D) for key in (None, KEY, jax.random.key(8))]

    off, masks, other = map(np.asarray, three())
    np.testing.assert_allclose(off, np.ones((4, D)))  # without a key
    np.testing.assert_allclose(np.where(masks == 0, 2, masks), 2)  # kept entries are doubled
    for i in range(4):
        for j in range(i):
            assert (masks[i] != masks[j]).any(), (i, j)
    assert (masks != other).any()


@pytest.mark.parametrize("forward", [twice_in_python, vmap], ids=lambda f: f.__name__)
def test_masks_are_a_function_of_the_key_compiled_or_not(forward):
    apply = setup(forward, {"w": zeros(4) if forward in STACKED else zeros()})
    masks = np.asarray(apply(KEY))
    np.testing.assert_array_equal(masks, apply(KEY))
    np.testing.assert_array_equal(masks, jax.jit(apply)(KEY))


def test_weights_have_masks_of_their_own():
    def forward(p, x):
        return jnp.stack([x @ p["w1"], x @ p["w2"], jnp.stack([x] * 2, 1)[:, 0] @ p["w3"]])

    masks = setup(forward, {"w1": zeros(), "w2": zeros(), "w3": zeros()})(KEY)[:, 0]
    assert all((masks[i] != masks[j]).any() for i in range(3) for j in range(i))


def test_weights_of_equal_bodies_have_masks_of_their_own():
    def forward(p, x):
        def layer(w):
            return lax.scan(lambda c, _: (c, x @ w), 0, length=2)[1]

        return jnp.stack([layer(p["w1"]), layer(p["w2"])])

    masks = jax.jit(setup(forward, {"w1": zeros(), "w2": zeros()}))(KEY)
    assert (masks[0] != masks[1]).any()


@pytest.mark.filterwarnings("ignore::lora_jax.TrainingWarning")  # two factors of one number
def test_a_matrix_of_one_number_is_not_taken_for_its_transpose():
    """A product with a transpose, as of a tied head, has no dropout."""

    def forward(p, x):
        return x @ p["w"].ravel().reshape(1, 1)

    apply = setup(forward, {"w": jnp.zeros((1, 1))}, size=1, axes={"w": (0, 1)})
    assert apply(KEY).item() in (0, 2)


def test_old_style_keys_and_layers_of_a_stack():
    apply = setup(scan_over_layers, {"w": zeros(4)})
    masks = apply(jax.random.PRNGKey(0))[:, 0]
    assert all((masks[i] != masks[j]).any() for i in range(4) for j in range(i))
