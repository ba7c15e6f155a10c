"""NNX models of random weights, made without compiling anything, and what they compute.

Each function is compiled once for all models of a kind, and for all tests.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax.models.families import bert, deberta_v2, gpt2, roberta
from lora_jax.models.parts import causal_attention, classifier, decoder, modules
from lora_jax.partition import path_name


def drawn(build, seed=0):
    """What `build` makes; products keep the size of what passes through."""
    graph, shapes = nnx.split(nnx.eval_shape(build))
    random = np.random.default_rng(seed)

    def draw(key_path, leaf):
        x, kind = random.standard_normal(leaf.shape), path_name(key_path).rpartition("/")[2]
        if kind == "kernel":
            x = 1.5 * x / np.sqrt(leaf.shape[-2])
        elif kind != "embedding":
            x = 0.3 * x + (kind == "scale")
        return jnp.asarray(x, leaf.dtype)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, shapes))


def assert_starts(build, deviation):
    """Matrices are normal with that deviation, biases zero, scales one, and layers differ."""
    leaves = jax.jit(lambda: nnx.state(build()))()
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(leaves):
        path, x = path_name(key_path), np.asarray(leaf)
        kind = path.rpartition("/")[2]
        if kind in ("kernel", "embedding"):
            assert abs(x.std() / deviation - 1) < 4 / np.sqrt(2 * x.size), path
            assert not (path.startswith("layers/") and np.allclose(x[0], x[1])), path
        else:
            assert (x == (kind == "scale")).all(), path


def dropout_keys(model, args, monkeypatch):
    """The random key of every dropout while a model runs, in all of its layers."""
    found = []

    def noted(x, rate, key):
        jax.debug.callback(
            lambda data: found.append(tuple(data.tolist())), jax.random.key_data(key)
        )
        return modules.dropout(x, rate, key)

    encoders = bert, classifier, deberta_v2, roberta
    for module in (*encoders, causal_attention, decoder, gpt2):
        monkeypatch.setattr(module, "dropout", noted)
    jax.jit(lambda model: model(*args, rng=jax.random.key(1)))(model)
    jax.effects_barrier()
    return found


def functional(model, method="__call__"):
    """Parameters, and the compiled function of them."""
    graph, params = nnx.split(model)
    return params, functools.partial(_call, graph, method)


def run(model, *args, **kwargs):
    params, apply = functional(model)
    return apply(params, *args, **kwargs)


def encode_and_run(model, *args):
    """A classifier's hidden states and logits, in NumPy."""
    graph, params = nnx.split(model)
    return tuple(map(np.asarray, _encode_and_call(graph, params, *args)))


def assert_slopes(value_and_grad, params, step=1e-6):
    """The gradient along a random direction is what finite differences find, in float64."""
    random = np.random.default_rng(0)
    direction = jax.tree.map(lambda x: random.standard_normal(x.shape), params)

    def value(share):
        moved = jax.tree.map(lambda x, d: np.asarray(x) + share * step * d, params, direction)
        return float(value_and_grad(moved)[0])

    products = jax.tree.map(lambda g, d: np.vdot(g, d), value_and_grad(params)[1], direction)
    found = sum(map(float, jax.tree.leaves(products)))
    np.testing.assert_allclose(found, (value(1) - value(-1)) / (2 * step), rtol=1e-6, atol=1e-6)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _call(graph, method, params, *args, **kwargs):
    return getattr(nnx.merge(graph, params), method)(*args, **kwargs)


@functools.partial(jax.jit, static_argnums=0)
def _encode_and_call(graph, params, *args):
    model = nnx.merge(graph, params)
    return model.encode(*args), model(*args)
