"""Members of an ensemble, by `vmap`: each keeps factors of its own, whatever it computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lora_jax as lj
from variants.lora import LoRA

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


ENSEMBLE = {"up": normal(5, 3, 4), "down": normal(5, 4, 3, seed=1)}


def of_members(one, targets="all-linear"):
    """The shapes of the factors of five members."""
    own = factor_shapes(one, {"up": normal(3, 4), "down": normal(4, 3)}, targets)
    return {path: [(5, *shape) for shape in shapes] for path, shapes in own.items()}


def factor_shapes(forward, params, targets="all-linear"):
    adapted = lj.adapt(forward, LoRA(rank=2), targets)
    trainable, _ = jax.eval_shape(lambda p: adapted.init(KEY, p, normal(7, 3)), params)
    return {path: [x.shape for x in own.values()] for path, own in trainable["adapters"].items()}


BETWEEN = {
    "stack": lambda h: jnp.stack([h, -h], -1).max(-1),
    "unstack": lambda h: jnp.stack(jnp.unstack(h)[:3]),
    "repeated": lambda h: jnp.broadcast_to(h[:, None], (7, 2, 4)).prod(1),
    "window": lambda h: lax.dynamic_slice(h, (h.shape[0] - 5, 0), (3, 4)),
    "chosen": lambda h: h[jnp.argmax(h[:, 0])],
    "rows": lambda h: h[jnp.argsort(h[:, 0])[:3]],
    "top": lambda h: lax.top_k(h.T, 3)[0].T,
    "put": lambda h: jnp.zeros((9, 4)).at[jnp.arange(7)].set(h),
    "put_rows": lambda h: jnp.zeros((9, 4)).at[jnp.argsort(h[:, 0])].set(h),
    "added": lambda h: jax.ops.segment_sum(h, jnp.arange(7) % 3, 3),
    "updated": lambda h: lax.dynamic_update_slice(jnp.zeros((9, 4)), h, (1, 0)),
    "pooled": lambda h: lax.reduce_window(h, -jnp.inf, lax.max, (2, 1), (2, 1), "VALID"),
    "tiled": lambda h: jnp.tile(h, (2, 1)),
    "convolved": lambda h: lax.conv_general_dilated(
        h[None], jnp.ones((3, 4, 4)), (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )[0],
}


@pytest.mark.parametrize("name", BETWEEN)
def test_members_are_seen_behind_what_stands_between_two_products(name):
    """The factors of `vmap`ped members have the shapes of their own, with the members first."""

    def one(p, x):
        return BETWEEN[name](jax.nn.gelu(x @ p["up"])) @ p["down"]

    assert factor_shapes(jax.vmap(one, (0, None), 1), ENSEMBLE) == of_members(one)


WEIGHTS = {
    "stack": lambda w: jnp.stack([w, 2 * w], 1).sum(1),
    "unstack": lambda w: sum(jnp.unstack(jnp.stack([w, 2 * w]))),
    "rolled": lambda w: jnp.roll(w, 1, 0),
    "chosen": lambda w: w[jnp.argsort(w[:, 0])],
    "window": lambda w: lax.dynamic_slice(jnp.stack([w, w]), (1, 0, 0), (1, *w.shape))[0],
    "put": lambda w: jnp.zeros((6, w.shape[1])).at[jnp.arange(len(w))].set(w)[: len(w)],
    "repeated": lambda w: jnp.broadcast_to(w, (2, *w.shape)).prod(0),
}


@pytest.mark.parametrize("which", [("up", "down"), ("up",), ("down",)], ids="+".join)
@pytest.mark.parametrize("name", WEIGHTS)
def test_members_are_seen_in_what_is_made_of_weights(name, which):
    """Also where the members' axis is not the first, so that it stands between the matrix's."""

    def one(p, x):
        own = {path: WEIGHTS[name](w) if path in which else w for path, w in p.items()}
        return jax.nn.gelu(x @ own["up"]) @ own["down"]

    aside = {path: w.transpose(1, 0, 2) for path, w in ENSEMBLE.items()}
    many, targets = jax.vmap(one, (1, None)), ["up", "down"]
    assert factor_shapes(many, aside, targets) == of_members(one, targets)
    adapted = lj.adapt(many, LoRA(rank=2), targets)
    trainable, frozen = adapted.init(KEY, aside, normal(7, 3))
    trainable = jax.tree.map(lambda leaf: leaf + 0.1, trainable)
    apart = adapted.forward(adapted.merge(trainable, frozen), normal(7, 3))
    np.testing.assert_allclose(adapted.apply(trainable, frozen, normal(7, 3)), apart, rtol=1e-10)
