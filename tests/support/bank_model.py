"""A small model of a table, stacked layers and two heads, and adapters of it for banks."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

import lora_jax as lj

SHAPES = {"table": (11, 8), "layers": {"kernel": (2, 8, 8), "bias": (2, 8)}, "head": (8, 4)}
STACK = "layers/kernel"


def forward(params, tokens, scale):
    """A table, a scan over stacked layers, and two heads: one tied to the table."""

    def layer(x, each):
        return jnp.tanh(x @ each["kernel"] + each["bias"][None, None]), None

    x, _ = jax.lax.scan(layer, params["table"][tokens], params["layers"])
    pooled = x.mean(1) * scale[:, None]
    return {"classes": pooled @ params["head"], "tokens": pooled @ params["table"].T}


def drawn(shapes, seed=0):
    random = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(random.standard_normal(shape))  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def inputs(rows, seed=1):
    random = np.random.default_rng(seed)
    return jnp.asarray(random.integers(0, 11, (rows, 3))), jnp.asarray(random.random(rows))


def trained(params, variant, targets, seed=0, **options):
    """An adapter whose factors are not those that it starts with."""
    adapted = lj.adapt(forward, variant, targets, **options)
    trainable, frozen = jax.jit(adapted.init)(jax.random.key(seed), params, *inputs(1))
    trainable = moved(trainable, seed + 1)
    return adapted, (trainable, dataclasses.replace(frozen, base=same_base(frozen.base, params)))


def moved(trainable, seed):
    """Factors that are not those that an adapter starts with; NumPy compiles no programs for it."""
    by = drawn(jax.tree.map(jnp.shape, trainable), seed)
    return jax.tree.map(
        lambda x, d: jnp.asarray(np.asarray(x) + 0.3 * np.asarray(d)), trainable, by
    )


def same_base(base, params):
    """The base with the params' own arrays in it: what `init` gives under `jit` are copies."""
    own = {"table": params["table"], "head": params["head"]}
    own |= {f"layers/{name}": x for name, x in params["layers"].items()}
    return {path: own.get(path, x) if not isinstance(x, dict) else x for path, x in base.items()}


@jax.jit
def alone(params, tokens, scale):
    """Each row of a batch by itself, with parameters of its own."""
    return jax.vmap(lambda *x: forward(x[0], *(each[None] for each in x[1:])))(
        params, tokens, scale
    )


def filled(params, found, **options):
    bank = lj.Bank(forward, params, **{"capacity": len(found), "max_rank": 8, **options})
    for slot, (_, adapter) in enumerate(found, 1):
        bank = bank.put(slot, adapter)
    return bank


def merged(found):
    return [jax.jit(adapted.merge)(*adapter) for adapted, adapter in found]


def assert_rows_are_those_alone(bank, each, rows):
    """Outputs of a bank against those of the merged parameters of each slot."""
    batch = inputs(len(rows))
    outputs = jax.jit(type(bank).apply)(bank, jnp.asarray(rows), *batch)
    own = jax.tree.map(lambda *x: jnp.stack(x), *(each[slot] for slot in rows))
    expected = jax.tree.map(lambda x: x[:, 0], alone(own, *batch))
    chex.assert_trees_all_close(outputs, expected, atol=1e-10, rtol=1e-10)
