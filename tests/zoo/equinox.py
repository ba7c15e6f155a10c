"""Equinox modules as parameters: their leaves include functions, and their settings are static."""

import equinox as eqx
import jax
import jax.numpy as jnp

from zoo.case import Case, Normal, randomised


def _case(normal: Normal, module: eqx.Module, *args, **options) -> Case:
    def forward(module, *args):
        return module(*args)

    options = {"targets": (".*weight",), **options}
    return Case(forward, randomised(module, normal), args, **options)


def _shapes(module, *args, **kwargs) -> eqx.Module:
    return eqx.filter_eval_shape(module, *args, key=jax.random.key(0), **kwargs)


def _stack_of_shapes(module, *args) -> eqx.Module:
    make = eqx.filter_vmap(lambda key: module(*args, key=key))
    return eqx.filter_eval_shape(make, jax.random.split(jax.random.key(0), 3))


def mlp(normal: Normal) -> Case:
    module = _shapes(eqx.nn.MLP, 4, 3, 5, depth=2, activation=jnp.tanh)
    case = _case(normal, module, normal(2, 4))
    return case._replace(forward=lambda module, x: jax.vmap(module)(x))


def attention(normal: Normal) -> Case:
    module = _shapes(eqx.nn.MultiheadAttention, 2, 6)
    x = normal(5, 6)
    return _case(normal, module, x, x, x)


def stacked_layers(normal: Normal) -> Case:
    layers = _stack_of_shapes(eqx.nn.MLP, 4, 4, 5, 1)

    def forward(layers, x):
        arrays, static = eqx.partition(layers, eqx.is_array)

        def step(x, arrays):
            return eqx.combine(arrays, static)(x), None

        return jax.lax.scan(step, x, arrays)[0]

    return Case(forward, randomised(layers, normal), (normal(4),), targets=(".*weight",))


def embedding(normal: Normal) -> Case:
    module = _shapes(eqx.nn.Embedding, 7, 4)
    case = _case(normal, module, jnp.array([1, 6, 0]))
    return case._replace(forward=lambda module, ids: jax.vmap(module)(ids))


def convolution(normal: Normal) -> Case:
    module = _shapes(eqx.nn.Conv1d, 4, 6, 3)
    return _case(normal, module, normal(4, 7))


def recurrent(normal: Normal) -> Case:
    cell = _shapes(eqx.nn.LSTMCell, 4, 3)

    def forward(cell, xs):
        start = (jnp.zeros(3), jnp.zeros(3))
        return jax.lax.scan(lambda h, x: (cell(x, h), h[0]), start, xs)

    return Case(forward, randomised(cell, normal), (normal(5, 4),), targets=("weight_.*",))
